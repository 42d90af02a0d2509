"""The whole service over the session's real Ray head: REST, reconciler, drivers, workers."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from service.api.app import assemble, create_app, open_store
from service.backends.local_ray import LocalRay
from service.backends.ray_jobs import RayJobs
from service.client.client import Client
from service.settings import DRIVER_MODULES, Settings
from service.spec.job import JobSpec
from service.spec.resources import JobEvent
from service.store.key_text import new_api_key


@pytest.fixture(scope="session")
def ray_jobs(local_ray: LocalRay) -> Iterator[RayJobs]:
    backend = RayJobs(
        local_ray.dashboard_url,
        local_ray.token,
        python=sys.executable,
        modules=DRIVER_MODULES,
        shares_filesystem=True,
    )
    with closing(backend):
        yield backend


@dataclass(frozen=True)
class System:
    """A running service.

    Attributes:
        url: where it answers.
        api_key: opens it.
        client: of it.
    """

    url: str
    api_key: str
    client: Client

    def await_event(self, job_id: str, wanted: Callable[[JobEvent], bool]) -> JobEvent:
        for event in self.client.jobs.stream_events(job_id):
            if wanted(event):
                return event
        raise AssertionError(f"{job_id} ended first: {self.client.jobs.get(job_id).error}")

    def worker_processes(self, job_id: str) -> list[psutil.Process]:
        started = self.await_event(job_id, lambda event: event.type == "train.started")
        workers: Any = started.data["workers"]
        return [psutil.Process(worker["pid"]) for worker in sorted(workers, key=lambda worker: worker["rank"])]

    def drivers(self, run_url: str) -> list[psutil.Process]:
        """Of a job or a sweep."""
        return [process for process in psutil.process_iter() if _drives(process, run_url)]

    def run(self, spec: JobSpec) -> str:
        job = self.client.jobs.create(spec)
        self.client.jobs.wait(job.id, timeout_s=200)
        return job.id


def _drives(process: psutil.Process, run_url: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return command[1:2] == ["-m"] and command[2] in DRIVER_MODULES.values() and run_url in command


@pytest.fixture(scope="session")
def system(ray_jobs: RayJobs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = Settings(tmp_path_factory.mktemp("service"), reconcile_interval_s=0.2)
    store = open_store(settings)
    key = new_api_key()
    store.add_key(key)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(assemble(settings, store, ray_jobs))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, key) as client:
            yield System(url, key, client)
        server.should_exit = True
        thread.join()


@pytest.fixture
def long_document(job_document: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A spec of some hundred short steps, time enough to interfere; its third row is none."""
    rows = [f'{{"prompt": "What is {n} times 3?", "completion": "It is {3 * n}."}}\n' for n in range(200)]
    rows.insert(2, '{"prompt": "What is love?"}\n')
    (tmp_path / "products.jsonl").write_text("".join(rows))
    job_document["data"]["sources"][0]["uri"] = f"file://{tmp_path}/products.jsonl"
    job_document["data"] |= {"dedup": None, "on_bad_row": "skip"}
    job_document["train"]["checkpoint_every_steps"] = 20
    return job_document
