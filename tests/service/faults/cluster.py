"""Stands for Ray where Ray itself cannot be made to fail on demand: its Jobs API over HTTP, drivers as threads.

It answers as Ray 2.60 was seen to: a second submission of an id is refused as an error 500 with text, and the id stays
taken; a stop of a pending job changes nothing and says that it did; a head that starts again knows nothing, while its
drivers live on for a while. On top come answers that are slow or lost, each a matter of a seeded chance.

Run as a process of its own: `python -m tests.service.faults.cluster --port-file PATH`; what happened in it is asked for
by `/test/…` routes, which also do to it what the world does to clusters.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ray_jobs.fence import claim_attempt
from ray_jobs.run_directory import EventWriter, RunDirectory

NUM_STEPS = 3
_STEP_S = 0.01


@dataclass
class Driver:
    """One start of a job's driver."""

    submission_id: str
    run_url: str
    attempt: int
    metadata: dict[str, str]
    status: str = "PENDING"
    message: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    killed: threading.Event = field(default_factory=threading.Event)

    @property
    def run_id(self) -> str:
        return self.run_url.rpartition("/")[2]


class Cluster:
    """Jobs that Ray knows, and drivers that run whether it knows them or not."""

    def __init__(self, seed: int = 0, trouble: float = 0.0) -> None:
        self.chance, self.trouble = random.Random(seed), trouble
        self.lock = threading.Lock()
        self.jobs: dict[str, Driver] = {}
        self.alive: list[Driver] = []
        self.starts: list[str] = []
        self.overlaps: list[str] = []
        self.num_requests = self.num_troubles = 0
        self.is_cut = self.holds_pending = False
        self.orphan_s = 0.1
        self.most_alive = 0

    def submit(self, body: dict[str, Any]) -> Driver | None:
        words = body["entrypoint"].split()
        options = dict(zip(words[3::2], words[4::2], strict=True))
        driver = Driver(body["submission_id"], options["--run-url"], int(options["--attempt"]), body["metadata"])
        with self.lock:
            if driver.submission_id in self.jobs:
                return None
            self.jobs[driver.submission_id] = driver
        threading.Thread(target=self._run, args=(driver,), daemon=True).start()
        return driver

    def forget(self) -> None:
        """The head was killed and has started again, with an empty memory."""
        with self.lock:
            orphans, self.jobs = list(self.jobs.values()), {}
        for driver in orphans:
            threading.Timer(self.orphan_s, driver.killed.set).start()

    def _run(self, driver: Driver) -> None:
        time.sleep(self._draw() * 0.02)
        while self.holds_pending:
            if driver.killed.wait(0.01):
                return
        with self.lock:
            if self.jobs.get(driver.submission_id) is not driver:
                return  # the head died before it started the driver
            self.overlaps += [
                f"{other.submission_id} and {driver.submission_id}"
                for other in self.alive
                if other.run_id == driver.run_id
            ]
            self.alive.append(driver)
            self.most_alive = max(self.most_alive, len(self.alive))
            self.starts.append(driver.submission_id)
            driver.status = "RUNNING"
        try:
            status, message = self._drive(driver)
        except OSError as error:
            status, message = "FAILED", str(error)
        with self.lock:
            self.alive.remove(driver)
            driver.status, driver.message = status, message

    def _drive(self, driver: Driver) -> tuple[str, str]:
        run = RunDirectory(driver.run_url)
        name = str(json.loads(run._read_spec())["name"])
        is_first = driver.attempt == 1
        if not claim_attempt(run, driver.attempt):
            return "FAILED", "the attempt was started before"
        with EventWriter(run, "driver", driver.attempt, flush_interval_s=60.0) as events:
            events.emit("job.started")
            events.flush()
            for step in range(1, NUM_STEPS + 1):
                if driver.stop.wait(_STEP_S):
                    return "STOPPED", ""
                if driver.killed.is_set() or (name == "dies-once" and is_first and step == 2):
                    return "FAILED", "killed by signal 9"
                events.emit("train.step", stage="train", step=step, total_steps=NUM_STEPS, loss=1.0)
                events.flush()
            while name == "waits":
                if driver.stop.wait(0.005):
                    return "STOPPED", ""
                if driver.killed.is_set():
                    return "FAILED", "killed by signal 9"
            if name == "bad-row" or (name == "storage-once" and is_first) or name == "storage":
                fault = "data" if name == "bad-row" else "infrastructure"
                events.emit("job.failed", message="no", code=name.replace("-", "_"), fault=fault, field=None)
                return "FAILED", "exit code 1"
            events.emit("job.finished", report="report.json")
        return "SUCCEEDED", ""

    def _draw(self) -> float:
        with self.lock:
            return self.chance.random()

    def draw_trouble(self) -> str | None:
        """What goes wrong with a request, if anything does."""
        self.num_requests += 1
        drawn = self._draw()
        if drawn >= self.trouble:
            return None
        self.num_troubles += 1
        return ("refused", "lost", "slow")[int(drawn / self.trouble * 3)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ClusterServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _handle(self) -> None:
        cluster = self.server.cluster
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/test/"):
            self._answer(200, self._control(json.loads(content or b"{}")))
            return
        if cluster.is_cut:
            self.close_connection = True
            return
        trouble = cluster.draw_trouble()
        if trouble == "refused":
            self._answer(503, "no")
            return
        if trouble == "slow":
            time.sleep(0.05)
        status, document = self._route(content)
        if trouble == "lost":
            self.close_connection = True
            return
        self._answer(status, document)

    do_GET = do_POST = _handle

    def _route(self, content: bytes) -> tuple[int, object]:
        cluster, parts = self.server.cluster, self.path.strip("/").split("/")
        if parts[1:2] != ["jobs"]:
            return 200, {"version": "4"}
        if self.command == "POST" and len(parts) == 2:
            body = json.loads(content)
            driver = cluster.submit(body)
            taken = f"Job with submission_id {body['submission_id']} already exists. Please use a different one."
            return (500, taken) if driver is None else (200, {"submission_id": driver.submission_id})
        with cluster.lock:
            if len(parts) == 2:
                return 200, [self._shown(driver) for driver in cluster.jobs.values()]
            found = cluster.jobs.get(parts[2])
        if found is None:
            return 404, f"Job {parts[2]} does not exist"
        if parts[3:] == ["stop"]:
            if found.status == "RUNNING":
                found.stop.set()
            return 200, {"stopped": True}
        return 200, self._shown(found)

    def _shown(self, driver: Driver) -> dict[str, Any]:
        return {
            "submission_id": driver.submission_id,
            "status": driver.status,
            "message": driver.message,
            "metadata": driver.metadata,
        }

    def _control(self, body: dict[str, Any]) -> dict[str, Any]:
        cluster, what = self.server.cluster, self.path.removeprefix("/test/")
        if what == "forget":
            cluster.forget()
        elif what == "kill":
            with cluster.lock:
                for driver in cluster.alive:
                    driver.killed.set()
        elif what == "set":
            for name, value in body.items():
                assert hasattr(cluster, name)
                setattr(cluster, name, value)
        with cluster.lock:
            return {
                "starts": cluster.starts,
                "overlaps": cluster.overlaps,
                "alive": [driver.submission_id for driver in cluster.alive],
                "num_requests": cluster.num_requests,
                "num_troubles": cluster.num_troubles,
            }


class ClusterServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asked is dead by now."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cluster = cluster


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trouble", type=float, default=0.0)
    options = parser.parse_args()
    server = ClusterServer(Cluster(options.seed, options.trouble))
    part = options.port_file.with_suffix(".part")
    part.write_text(str(server.server_address[1]))
    part.rename(options.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
