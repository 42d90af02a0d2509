"""One control plane under load, beside a bare FastAPI route on the same machine.

    apt-get install wrk
    python benchmarks/service/load.py [--seconds 10] [--clients 200] [--followers 500] [--jobs 100000] [--minutes 10]
                                      [--database postgresql://...]

The control plane has SQLite, or an empty database that is named, one replica, and a cluster that does not answer, so
that jobs wait in the queue and all that is measured is the service's. The bare route is FastAPI's, a function that
returns the same job from memory, without a key, a store or a middleware. Each has a process of its own, started anew
for each measurement; `wrk` drives one after the other from the same machine, so the ratio says more than the figures.
    polling    clients that ask for a job's status again and again: requests a second, 99th percentile; and the same at
               ease, each about `--pause` seconds after its last answer, as a client that waits for a job does
    memory     resident after each minute of polling
    accepting  jobs posted over 16 connections, each durable before it is answered
    following  followers of one job by server-sent events: until all have an event, from when it is stored
    listing    the newest 50 jobs of 100 and of `--jobs`, by one client
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from fastapi import FastAPI
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from service.api.app import assemble, create_app, open_store
from service.api.server import Server
from service.backends.ray_jobs import RayJobs
from service.serve import ensure_first_key
from service.settings import DRIVER_MODULES, Settings
from service.spec.event import Event
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.engine import migrate, open_engine
from service.store.models import JobRow

NOWHERE = "http://127.0.0.1:9"
"""Port of the discard protocol: no cluster answers there."""
FEW_JOBS = 100


def settings_of(directory: Path, database_url: str | None) -> Settings:
    """Of the control plane whose data lies in a directory."""
    return Settings(directory, database_url=database_url, max_running_jobs=0, rate_limit_per_s=0)


def serve_control_plane(listener: socket.socket, settings: Settings) -> None:
    """The whole application."""
    backend = RayJobs(NOWHERE, "none", python="python", modules=DRIVER_MODULES, shares_filesystem=True)
    app = create_app(assemble(settings, open_store(settings), backend))
    Server(uvicorn.Config(app, log_level="critical", access_log=False)).run([listener])


def serve_bare(listener: socket.socket, job: str) -> None:
    """One route."""
    app, answer = FastAPI(), Job.model_validate_json(job)

    @app.get("/v1/jobs/{job_id}")
    def get_job(job_id: str) -> Job:  # noqa: ARG001  as the real one
        return answer

    uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False)).run([listener])


@dataclass(frozen=True)
class Serving:
    """A process that serves."""

    url: str
    process: psutil.Process

    @property
    def cpu_s(self) -> float:
        """Processor seconds so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def resident_bytes(self) -> int:
        """In memory now."""
        return int(self.process.memory_info().rss)


@contextmanager
def served(target: Callable[..., None], argument: Any) -> Iterator[Serving]:
    """Serve in a process of its own for as long as the block lasts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = multiprocessing.get_context("fork").Process(target=target, args=(listener, argument))
        process.start()
        assert process.pid is not None, "it was started"
        try:
            while httpx.get(f"{url}/openapi.json", timeout=60).status_code != httpx.codes.OK:
                time.sleep(0.05)
            yield Serving(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.join()


@dataclass(frozen=True)
class Load:
    """What `wrk` saw, and what a request took the server's processor."""

    per_s: float
    p99_ms: float
    cpu_ms: float

    def __str__(self) -> str:
        return f"{self.per_s:,.0f} a second, p99 {self.p99_ms:.0f} ms, {self.cpu_ms:.2f} ms of a processor each"


_MS_OF_UNIT = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def wrk(server: Serving, path: str, clients: int, seconds: float, *, key: str = "", script: str | None = None) -> Load:
    """Load a path.

    Raises:
        SystemExit: an answer was no success.
    """
    command = ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:.0f}s", "--latency"]
    command += ["--timeout", "10s", "--header", f"Authorization: Bearer {key}"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        if script is not None:
            file.write(script)
            file.flush()
            command += ["--script", file.name]
        before = server.cpu_s
        done = subprocess.run([*command, server.url + path], check=True, capture_output=True, text=True)  # noqa: S603
        text = done.stdout
        cpu_s = server.cpu_s - before
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{path} did not answer all: {text}")
    number, unit = _find(r"99%\s+([\d.]+)(us|ms|s)", text)
    requests = int(_find(r"(\d+) requests in", text)[0])
    per_s = float(_find(r"Requests/sec:\s+([\d.]+)", text)[0])
    return Load(per_s, float(number) * _MS_OF_UNIT[unit], 1e3 * cpu_s / requests)


def _find(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"wrk said what is not understood: {text}")
    return found.groups()


def a_spec(directory: Path) -> JobSpec:
    """A small job, whose data is there."""
    rows = directory / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    source = {"name": "sums", "category": "math", "form": "prompt_completion", "uri": f"file://{rows}"}
    return JobSpec.model_validate(
        {
            "name": "load",
            "model": {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe"}},
            "data": {"sources": [source]},
        }
    )


class Bench:
    """A data directory, its first key and first job."""

    def __init__(self, directory: Path, database_url: str | None) -> None:
        self.settings = settings_of(directory, database_url)
        if database_url is not None:
            engine = open_engine(database_url)
            migrate(engine)
            engine.dispose()
        key = ensure_first_key(self.settings)
        assert key is not None, "the database is new"
        self.key, self.spec = key, a_spec(directory)
        with self.control_plane() as server:
            answer = self.post(server)
            self.job = answer.text
            self.job_id = str(answer.json()["id"])

    @contextmanager
    def control_plane(self) -> Iterator[Serving]:
        """Served anew."""
        with served(serve_control_plane, self.settings) as server:
            yield server

    def post(self, server: Serving) -> httpx.Response:
        """One job."""
        body = self.spec.model_dump(mode="json")
        return httpx.post(f"{server.url}/v1/jobs", json=body, headers=self.headers).raise_for_status()

    @property
    def headers(self) -> dict[str, str]:
        """With the key."""
        return {"Authorization": f"Bearer {self.key}"}

    def polling(self, clients: int, seconds: float, pause_s: float) -> str:
        """Statuses, beside the bare route."""
        path = f"/v1/jobs/{self.job_id}"
        pausing = f"function delay() return math.random(0, {2e3 * pause_s:.0f}) end"  # or all would ask at once
        with self.control_plane() as server:
            mine = wrk(server, path, clients, seconds, key=self.key)
            at_ease = wrk(server, path, clients, seconds, key=self.key, script=pausing)
        with served(serve_bare, self.job) as server:
            bare = wrk(server, path, clients, seconds)
        return (
            f"polling, {clients} clients: {mine}\n         bare route: {bare}\n         "
            f"{mine.per_s / bare.per_s:.0%} of its requests, {mine.cpu_ms / bare.cpu_ms:.1f} times its processor time\n"
            f"  every {pause_s:g} s or so: {at_ease}"
        )

    def accepting(self, seconds: float) -> str:
        """Jobs posted."""
        body = json.dumps(self.spec.model_dump(mode="json"))
        script = f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = {json.dumps(body)}'
        with self.control_plane() as server:
            return f"accepting: {wrk(server, '/v1/jobs', 16, seconds, key=self.key, script=script)}"

    def following(self, followers: int) -> str:
        """Until all have an event."""

        def tell() -> float:
            with closing(open_store(self.settings)) as store:
                store.ingest_segment(self.job_id, f"{time.time_ns()}", [Event(type="job.warning", message="now")])
            return time.monotonic()

        with self.control_plane() as server:
            delays = asyncio.run(
                follow(f"{server.url}/v1/jobs/{self.job_id}/events:stream", self.headers, followers, tell)
            )
            resident = server.resident_bytes
        return (
            f"following: {len(delays)} followers have an event after {statistics.median(delays):.2f} s in the median, "
            f"the last after {max(delays):.2f} s; {resident / 2**20:.0f} MiB"
        )

    def listing(self, jobs: int, requests: int = 200) -> str:
        """The newest, of few and of many."""
        self._fill(FEW_JOBS)
        few = self._list(requests)
        self._fill(jobs)
        many = self._list(requests)
        return (
            f"listing: {few * 1e3:.1f} ms of {FEW_JOBS} jobs, {many * 1e3:.1f} ms of {jobs:,}, "
            f"{many / few:.2f} times as long"
        )

    def _fill(self, number: int) -> None:
        """Jobs that have ended, as many as are missing."""
        engine = open_engine(self.settings.resolved_database_url)
        with Session(engine) as session, session.begin():
            first = session.get_one(JobRow, self.job_id)
            columns = {column.key: getattr(first, column.key) for column in JobRow.__table__.columns}
            known = set(session.scalars(select(JobRow.id)))
            ids = [name for n in range(number) if (name := f"job-0-{n:08x}") not in known][: number - len(known)]
            rows = [columns | {"id": name, "status": "succeeded"} for name in ids]
            if rows:
                session.execute(insert(JobRow), rows)
        engine.dispose()  # before a server is forked, which would share the connections

    def _list(self, requests: int) -> float:
        """Median seconds."""
        seconds = []
        with self.control_plane() as server, httpx.Client(base_url=server.url, headers=self.headers) as http:
            for _ in range(requests):
                start = time.perf_counter()
                http.get("/v1/jobs", params={"limit": 50}).raise_for_status()
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def memory(self, minutes: int, clients: int) -> str:
        """Resident after each minute."""
        with self.control_plane() as server:
            sizes = []
            for _ in range(minutes):
                wrk(server, f"/v1/jobs/{self.job_id}", clients, 60, key=self.key)
                sizes.append(f"{server.resident_bytes / 2**20:.0f}")
        return f"memory: {', '.join(sizes)} MiB after each minute of polling"


async def follow(url: str, headers: dict[str, str], followers: int, tell: Callable[[], float]) -> list[float]:
    """Seconds until each follower has what is told once all are there."""
    there, told = asyncio.Semaphore(0), asyncio.Event()

    async def one(http: httpx.AsyncClient) -> float:
        async with http.stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            there.release()
            async for line in response.aiter_lines():
                if told.is_set() and line == "event: job.warning":
                    return time.monotonic()
        raise SystemExit("a stream ended early")

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as http:
        tasks = [asyncio.create_task(one(http)) for _ in range(followers)]
        for _ in range(followers):
            await there.acquire()
        told.set()
        at = await asyncio.to_thread(tell)  # some may have it before this returns
        return [arrived - at for arrived in await asyncio.gather(*tasks)]


def main() -> None:
    """Print a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of a client at ease between two requests")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--followers", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--database", help="URL of an empty database, by default SQLite in a directory that goes")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.database)
        print(bench.polling(options.clients, options.seconds, options.pause), flush=True)
        if options.minutes:  # before the many jobs: the servers begin as copies of this process
            print(bench.memory(options.minutes, options.clients), flush=True)
        print(bench.following(options.followers), flush=True)
        print(bench.listing(options.jobs), flush=True)
        print(bench.accepting(options.seconds), flush=True)


if __name__ == "__main__":
    main()
