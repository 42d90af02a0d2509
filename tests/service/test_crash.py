"""A control plane that is killed at every point, again and again, and what must be true when it has come back."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from service.spec.resources import TERMINAL_STATUSES, Job
from service.store.engine import open_engine
from service.store.models import JobRow
from service.store.store import Store
from tests.conftest import TRIED
from tests.service.conftest import BOTH_DATABASES
from tests.service.faults.cluster import NUM_STEPS
from tests.service.faults.control_plane import Place
from tests.service.postgres import new_database

BUDGET_S = float(os.environ.get("SLEDDOG_CRASH_TEST_S", "40"))
"""How long kill points are tried on each database; set it to 900 to try every one of them several times."""
KILLS_PER_RUN = 15
MIN_KILLS = 20
"""However slow the machine is."""
DEADLINE_S = 60.0

EXPECTED = {
    "works": ("succeeded", 1, None),
    "dies-once": ("succeeded", 2, None),
    "storage-once": ("succeeded", 2, None),
    "bad-row": ("failed", 1, "bad_row"),
    "waits": ("cancelled", 1, None),
}
"""Status, attempts and error of each job that is posted, whatever happens to the control plane."""


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Answers are refused, lost or slow in one of twenty requests."""
    port = tmp_path_factory.mktemp("cluster") / "port"
    command = [sys.executable, "-m", "tests.service.faults.cluster", "--port-file", str(port), "--trouble", "0.05"]
    process = subprocess.Popen(command)
    while not port.exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port.read_text()}"
    process.kill()
    process.wait()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Outlives the processes that answer on it, so that requests wait while there is none."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener


Databases = Callable[[Path], AbstractContextManager[str]]
"""Makes one without jobs for a block, with a directory to itself; gives its URL."""


@pytest.fixture(params=BOTH_DATABASES)
def databases(request: pytest.FixtureRequest) -> Databases:
    if request.param == "sqlite":
        return lambda directory: nullcontext(f"sqlite:///{directory / 'sleddog.db'}")
    server = request.getfixturevalue("postgres")
    return lambda _directory: new_database(server, "template")


class DiedError(Exception):
    """The control plane is gone, and nobody else answers."""


class Story:
    """Jobs posted to a control plane, which is killed on the way."""

    def __init__(self, place: Place, spec: dict[str, Any], kills: list[dict[str, Any]]) -> None:
        self.place, self.spec, self.kills = place, spec, kills
        self.num_kills = 0
        self.reached: set[str] = set()
        self.ids: dict[str, str] = {}
        self._http = httpx.Client(trust_env=False, timeout=2.0)
        self._is_asking = False
        signal.signal(signal.SIGUSR1, self._on_death)
        self._start()

    def _start(self) -> None:
        self._kill = self.kills.pop(0) if self.kills else {}
        self._process = self.place.start(**self._kill)
        threading.Thread(target=self._watch, args=(self._process, threading.get_ident()), daemon=True).start()

    @staticmethod
    def _watch(process: BaseProcess, asker: int) -> None:
        wait([process.sentinel])
        signal.pthread_kill(asker, signal.SIGUSR1)

    def _on_death(self, *_: object) -> None:
        if self._is_asking:
            raise DiedError  # instead of waiting for an answer from the socket that outlives the process

    def _ensure_alive(self) -> None:
        if self._process.is_alive():
            return
        assert self._process.exitcode == -signal.SIGKILL, "it ended by itself"
        self.num_kills += 1
        self.reached.add(self._kill.get("label", ""))
        self._start()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask until there is an answer, as a client that must know does."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self._ensure_alive()
            try:
                key = self.place.settings.api_key_path.read_text()
                headers = {"Authorization": f"Bearer {key}"} | options.get("headers", {})
                self._is_asking = True
                answer = self._http.request(method, self.place.url + path, **options | {"headers": headers})
                self._is_asking = False
                if answer.status_code not in (401, 503):
                    return answer
            except (httpx.TransportError, FileNotFoundError, DiedError):
                self._is_asking = False
                time.sleep(0.005)
            if time.monotonic() >= deadline:
                os.kill(self._process.pid or 0, signal.SIGABRT)  # which has it tell where each of its threads is
                self._process.join()
                pytest.fail(f"{method} {path} was never answered")

    def post(self) -> None:
        for name in EXPECTED:
            headers = {"Idempotency-Key": f"{self.place.directory.name}-{name}"}
            answer = self.ask("POST", "/v1/jobs", json=self.spec | {"name": name}, headers=headers)
            assert answer.status_code in (200, 201), answer.text
            assert self.ids.setdefault(name, answer.json()["id"]) == answer.json()["id"]

    def converge(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            jobs = {job["name"]: job for job in self.ask("GET", "/v1/jobs").json()["data"]}
            if jobs["waits"]["status"] == "running":
                assert self.ask("POST", f"/v1/jobs/{self.ids['waits']}/cancel").status_code == 200
            if all(job["status"] in TERMINAL_STATUSES for job in jobs.values()):
                break
            assert time.monotonic() < deadline, {name: (job["status"], job["attempt"]) for name, job in jobs.items()}
            time.sleep(0.02)
        self.close()

    def close(self) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._process.kill()
        self._process.join()
        self._http.close()


def told_whole(store: Store, job: Job) -> None:
    """Nothing of a job's history is missing, and nothing is there twice."""
    events, has_more = store.list_events(Job, job.id)
    assert not has_more
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    steps = Counter((event.attempt, event.data["step"]) for event in events if event.type == "train.step")
    assert set(steps.values()) <= {1}, "a step is told once an attempt"
    if job.status == "succeeded":
        assert [step for attempt, step in steps if attempt == job.attempt] == list(range(1, NUM_STEPS + 1))
    changes = [event.data for event in events if event.type == "job.status"]
    assert [change["old"] for change in changes] == [None, *(change["new"] for change in changes[:-1])]
    assert changes[-1]["new"] == job.status


def check(store: Store, story: Story, happened: dict[str, Any]) -> None:
    with store._transaction() as session:
        assert Counter(session.scalars(select(JobRow.name))) == Counter([*EXPECTED]), "each is there, and there once"
    for name, (status, attempt, code) in EXPECTED.items():
        job = store.get(Job, story.ids[name])
        assert (job.status, job.attempt, job.error and job.error.code) == (status, attempt, code), name
        starts = [start for start in happened["starts"] if start.startswith(job.id)]
        assert starts == [f"{job.id}-a{number}" for number in range(1, attempt + 1)], "each attempt was started once"
        assert not [driver for driver in happened["alive"] if driver.startswith(job.id)]
        told_whole(store, job)


def tell(story: Story, cluster_url: str) -> dict[str, Any]:
    happened: dict[str, Any] = httpx.post(f"{cluster_url}/test/what").json()
    assert happened["overlaps"] == [], "no job runs twice at a time"
    engine = open_engine(story.place.database_url)
    check(Store(engine, b""), story, happened)
    engine.dispose()  # before another process is forked, which would share its connections
    return happened


# a request that is given up at its process's death may leave its socket to the collector
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(BUDGET_S + 4 * DEADLINE_S)
def test_nothing_is_lost_or_done_twice_wherever_a_control_plane_is_killed(
    tmp_path: Path,
    job_document: dict[str, Any],
    cluster_url: str,
    listener: socket.socket,
    databases: Databases,
    record_property: Callable[[str, object], None],
) -> None:
    def story(number: int, kills: list[dict[str, Any]]) -> Story:
        directory = tmp_path / str(number)
        directory.mkdir()
        with databases(directory) as database_url:
            told = Story(Place(directory, database_url, cluster_url, listener), job_document, kills)
            try:
                told.post()
                told.converge()
            finally:
                told.close()
            tell(told, cluster_url)
        return told

    start, chance = time.monotonic(), random.Random(7)
    first = story(0, [])
    labels = list(dict.fromkeys(first.place.trace.read_text().splitlines()))
    remaining, num_kills, number = set(labels), 0, 0
    while num_kills < MIN_KILLS or (time.monotonic() - start < BUDGET_S and (remaining or BUDGET_S > 100)):
        number += 1
        pool = [label for label in labels if label in remaining] or labels
        chosen = sorted(chance.sample(pool, min(KILLS_PER_RUN, len(pool))), key=labels.index)
        kills: list[dict[str, Any]] = [{"label": label} for label in chosen]
        kills.append({"number": chance.randint(1, 200)})
        told = story(number, kills)
        num_kills += told.num_kills
        remaining -= told.reached
    num_troubles = httpx.post(f"{cluster_url}/test/what").json()["num_troubles"]
    told = f"{len(labels) - len(remaining)} of {len(labels)} kill points, {num_kills} kills in {number} runs, "
    record_property(TRIED, f"{told}{num_troubles} answers of the cluster refused, lost or slow")
