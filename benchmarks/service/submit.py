"""From asking for a job to its driver's first line, beside `ray job submit` on the same warm local cluster.

    python -m benchmarks.service.submit [--times 10]

The driver prints the time and ends, whoever has it started, so that only the way to it is measured. In turn:
    sleddog    the client posts a job, to a service that looks at the cluster every 0.5 s, as by default
    ray        `ray job submit`, from the command's start
    ray API    `JobSubmissionClient.submit_job` in a process that is there, without the start of a command
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from benchmarks.service.load import a_spec
from service.backends.local_ray import LocalRay
from service.client.client import Client
from service.serve import ensure_first_key, served
from service.settings import Settings

DRIVER = "benchmarks.service.first_line"


def settings_of(directory: Path, head: LocalRay) -> Settings:
    """Of a control plane beside the cluster, whose drivers only print."""
    return Settings(
        directory,
        runs_url=f"file://{directory}/runs",
        ray_dashboard_url=head.dashboard_url,
        ray_token_path=directory / "token",
        driver_modules={"job": DRIVER},
        max_attempts=1,
    )


def told_in(text: str) -> float:
    """The time that the driver printed, among what Ray prints."""
    return next(float(line) for line in text.splitlines() if line.replace(".", "", 1).isdigit())


def by_sleddog(client: Client, directory: Path) -> float:
    """When the driver of a posted job began."""
    job = client.jobs.create(a_spec(directory))
    while not client.jobs.get(job.id).is_terminal:
        time.sleep(0.1)
    return told_in(client.jobs.logs(job.id))


def by_command() -> float:
    """When the driver of `ray job submit` began."""
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--", sys.executable, "-m", DRIVER]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  as it stands here
    return told_in(done.stdout)


def by_api(ray: JobSubmissionClient) -> float:
    """When the driver of a submission began."""
    submission = ray.submit_job(entrypoint=shlex.join([sys.executable, "-m", DRIVER]))
    while not ray.get_job_status(submission).is_terminal():
        time.sleep(0.1)
    return told_in(ray.get_job_logs(submission))


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="each way is taken")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        head = LocalRay(directory / "token", num_cpus=3)
        try:
            head.start()
            os.environ |= {
                "RAY_ADDRESS": head.dashboard_url,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
            }
            settings = settings_of(directory, head)
            key = ensure_first_key(settings)
            assert key is not None, "the directory is new"
            with served(settings) as url, Client(url, key) as client:
                ray = JobSubmissionClient(head.dashboard_url, headers={"Authorization": f"Bearer {head.token}"})
                measure(options.times, client, ray, directory)
        finally:
            head.stop()


def measure(times: int, client: Client, ray: JobSubmissionClient, directory: Path) -> None:
    """Take each way in turn, after once for each to warm up."""
    ways: dict[str, Callable[[], float]] = {
        "sleddog": lambda: by_sleddog(client, directory),
        "ray": by_command,
        "ray API": lambda: by_api(ray),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(times + 1):
        for way, take in ways.items():
            asked_at = time.time()
            began_at = take()
            if number > 0:
                seconds[way].append(began_at - asked_at)
    for way, taken in seconds.items():
        print(f"{way:8} {statistics.median(taken):.2f} s in the median, {min(taken):.2f} to {max(taken):.2f}")


if __name__ == "__main__":
    main()
