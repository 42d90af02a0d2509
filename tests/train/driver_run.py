"""A driver on a Ray of its own, for the tests of what ends a run and what restarts it.

    driver_run.py CASE DIRECTORY

The directory holds `spec.json`, and afterwards `outcome.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

import ray_jobs.train.trainer
from ray_jobs.finetune import run_job
from ray_jobs.report import read_events
from ray_jobs.run_directory import EventWriter, RunDirectory
from ray_jobs.train.loop import HELD_OUT_FILE, WorkerConfig
from ray_jobs.train.placement import await_room
from ray_jobs.train.trainer import train
from service.errors import InvalidSpecError, SleddogError
from service.spec.event import REPORT_FILE, Event

NOTICE_LOSS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""A node that is silent counts as lost after some 12 s; Ray's own settings take a minute or so."""


def _start_noted(directory: str) -> int:
    """How often the worker group was started before; worker 0 counts."""
    starts = Path(directory) / "starts"
    before = len(starts.read_text()) if starts.exists() else 0
    dist.barrier()
    if dist.get_rank() == 0:
        starts.write_text("x" * (before + 1))
    dist.barrier()
    return before


def one_worker_raises(config: dict[str, Any]) -> None:
    """The other one is left waiting in a collective."""
    _start_noted(config["run_url"])
    if dist.get_rank() == 1:
        raise InvalidSpecError("no good", "train.precision")
    dist.barrier()


@ray.remote(num_cpus=1)
class Squatter:
    """Takes the room of a worker."""

    def ready(self) -> None:
        """Only to be waited for."""


def the_room_is_taken(config: dict[str, Any]) -> None:
    """A node is lost: a worker dies, and another process stands where it was."""
    _start_noted(config["run_url"])
    if dist.get_rank() == 1:
        Squatter.options(name="squatter", lifetime="detached").remote()
        time.sleep(1)
        (Path(config["run_url"]) / "died").write_text(str(time.monotonic()))
        os._exit(1)
    dist.barrier()


def they_cannot_connect(config: dict[str, Any]) -> None:
    """Never called: each worker is told to listen at an interface that its host has not."""
    _start_noted(config["run_url"])


def run_workers(work: Any, directory: Path) -> dict[str, Any]:
    """Train with another worker function; returns how the run ended."""
    run = RunDirectory(str(directory))
    ray_jobs.train.trainer.run_worker = work
    died, starts = directory / "died", directory / "starts"
    told: list[str] = []
    outcome: dict[str, Any] = {"error": None}
    try:
        train(run, run.read_spec(), WorkerConfig(run.url, 1, "", "", ()), told.append)
    except SleddogError as error:
        outcome = {"error": error.code, "field": error.field, "message": error.message}
    since_death = time.monotonic() - float(died.read_text()) if died.exists() else None
    num_starts = len(starts.read_text()) if starts.exists() else 0
    return outcome | {"seconds_since_death": since_death, "starts": num_starts, "restarts": len(told)}


@ray.remote(num_cpus=0, max_retries=0)
def _trial(directory: str) -> None:
    run = RunDirectory(directory)
    train(run, run.read_spec(), WorkerConfig(run.url, 1, "", "", ()), print)


def lost_while_it_waits(directory: Path) -> dict[str, Any]:
    """The processes of a trial are lost while it waits for room; afterwards there is room."""
    squatter = Squatter.remote()
    ray.get(squatter.ready.remote())
    _lose_trial(directory, lambda: _reserved() == ["PENDING"])
    ray.kill(squatter)
    return _room_afterwards(directory)


def lost_while_they_start(directory: Path) -> dict[str, Any]:
    """The processes of a trial are lost while its workers start, in the room that is reserved for them."""
    _lose_trial(directory, lambda: bool(_processes("ray::TrainController")) and _reserved() == ["CREATED"])
    return _room_afterwards(directory)


def _lose_trial(directory: Path, is_time: Callable[[], bool]) -> None:
    trial = _trial.remote(str(directory))
    await_(is_time)
    for process in _processes("ray::_trial", "ray::TrainController"):
        with contextlib.suppress(psutil.NoSuchProcess):  # the second does not outlive the first for long
            process.kill()
    ray.wait([trial])


def _room_afterwards(directory: Path) -> dict[str, Any]:
    """What is still reserved, and what the next start of the trial finds."""
    run = RunDirectory(str(directory))
    await_(lambda: _reserved() == ["CREATED"])
    found = await_room(run, run.read_spec(), {"CPU": 1.0})
    return {"found": found, "reserved": _reserved()}


def _processes(*titles: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(process.cmdline()[:1]).startswith(titles):
                found.append(process)
    return found


def _reserved() -> list[str]:
    states = [group["state"] for group in placement_group_table().values()]
    return [state for state in states if state != "REMOVED"]


def attempts(directory: Path) -> list[dict[str, Any]]:
    """Two attempts of a job: from nothing, and from when its last evaluation and its report were lost."""
    run, outcomes = RunDirectory(str(directory)), []
    for attempt in (1, 2):
        for name in (HELD_OUT_FILE.format(when="after"), REPORT_FILE):
            (directory / name).unlink(missing_ok=True)
        with EventWriter(run, "driver", attempt) as events:
            run_job(run, run.read_spec(), events, attempt)
        told = [event for event in read_events(run) if event.attempt == attempt]
        outcomes.append(
            {
                "steps": sum(event.type == "train.step" for event in told),
                "evaluations": [event.data["when"] for event in told if event.type == "eval.held_out"],
                "reused": {str(e.stage): e.data["reused"] for e in told if e.type == "stage.finished"},
                "report": json.loads((directory / REPORT_FILE).read_text()),
            }
        )
    return outcomes


class CutOff:
    """What befalls a node that all workers lie on: nobody reaches it, it stands still for a while, and wakes up.

    Its raylet, which would end its workers with itself, answers no more. The workers go on once others have taken their
    place, and still reach the run directory.
    """

    def __init__(self, run: RunDirectory, node: Any) -> None:
        self._run, self._raylet = run, node.all_processes["raylet"][0].process.pid
        self.last_words: list[str] = []
        self._thread = threading.Thread(target=self._happen)
        self._thread.start()

    def _starts(self) -> list[Event]:
        return [event for event in read_events(self._run) if event.type == "train.started"]

    def _happen(self) -> None:
        await_(lambda: any(event.type == "checkpoint.saved" for event in read_events(self._run)))
        workers = [worker["pid"] for worker in self._starts()[0].data["workers"]]  # type: ignore[union-attr, index, call-overload]
        for pid in (self._raylet, *workers):
            os.kill(pid, signal.SIGSTOP)
        await_(lambda: len(self._starts()) == 2)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        await_(self._has_last_words)

    def _has_last_words(self) -> bool:
        """Ray Train keeps what a worker raised in its log."""
        logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
        texts = [path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file()]
        self.last_words = sorted({found for text in texts for found in re.findall(r"SupersededError: ([^;]*);", text)})
        return bool(self.last_words)

    def end(self) -> None:
        self._thread.join()
        os.kill(self._raylet, signal.SIGKILL)


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def node_cut_off(directory: Path, node: Any) -> dict[str, Any]:
    """A job whose workers all lie on a node that is cut off in the middle; the other node has room for one."""
    run = RunDirectory(str(directory))
    cut_off = CutOff(run, node)
    with EventWriter(run, "driver", 1) as events:
        events.emit("job.started")
        events.flush()
        run_job(run, run.read_spec(), events, 1)
    cut_off.end()
    told = read_events(run)
    return {
        "workers": [len(event.data["workers"]) for event in told if event.type == "train.started"],  # type: ignore[arg-type]
        "starts": [event.data["start_step"] for event in told if event.type == "train.started"],
        "told": [event.data["step"] if event.type == "train.step" else event.type for event in told],
        "losses": [[event.data["step"], event.data["loss"]] for event in told if event.type == "train.step"],
        "warnings": [event.data["kind"] for event in told if event.type == "job.warning"],
        "last_words": cut_off.last_words,
        "report": json.loads((directory / REPORT_FILE).read_text()),
    }


def main() -> None:
    case, directory = sys.argv[1], Path(sys.argv[2])
    if case == "node_cut_off":
        os.environ |= NOTICE_LOSS
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        node = cluster.add_node(num_cpus=2)
        ray.init(cluster.address, log_to_driver=False)
        outcome: Any = node_cut_off(directory, node)
        ray.shutdown()
        cluster.shutdown()
        (directory / "outcome.json").write_text(json.dumps(outcome))
        return
    if case == "they_cannot_connect":
        os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"  # before Ray starts the processes that inherit it
    ray.init("local", num_cpus=3 if case == "attempts" else 2, include_dashboard=False, log_to_driver=False)
    if case == "attempts":
        outcome = attempts(directory)
    elif case.startswith("lost"):
        losses = {loss.__name__: loss for loss in (lost_while_it_waits, lost_while_they_start)}
        outcome = losses[case](directory)
    else:
        workers = {work.__name__: work for work in (one_worker_raises, the_room_is_taken, they_cannot_connect)}
        outcome = run_workers(workers[case], directory)
    ray.shutdown()
    (directory / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
