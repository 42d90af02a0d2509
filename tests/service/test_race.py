"""Two control planes over one store and one cluster, while things happen to both: many orders, seed by seed."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, event

from service.attempts import Limits
from service.backends.ray_jobs import RayJobs
from service.reconcile import Reconciler
from service.settings import DRIVER_MODULES
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store import transitions
from service.store.engine import open_engine
from service.store.store import Store
from tests.conftest import TRIED
from tests.service.conftest import BOTH_DATABASES
from tests.service.faults.cluster import Cluster, ClusterServer
from tests.service.postgres import new_database
from tests.service.test_crash import EXPECTED, Databases, told_whole

SEEDS = int(os.environ.get("SLEDDOG_RACE_SEEDS", "6"))
"""Histories of each kind, on each database."""
DEADLINE_S = 60.0
MAX_RUNNING = 2


class SteppingDatetime(datetime):
    """A wall clock that somebody sets."""

    step: ClassVar[timedelta] = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.step


class Interleaving:
    """Delays each replica at each statement, commit and call by chance, and notes the order in which they came."""

    def __init__(self, seed: int) -> None:
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._order = hashlib.sha256()

    def pass_by(self, label: str) -> None:
        with self._lock:
            self._order.update(f"{threading.current_thread().name} {label}\n".encode())
            delay_s = self._chance.choice((0.0, 0.0, 0.001, 0.004))
        time.sleep(delay_s)

    @property
    def name(self) -> str:
        return self._order.hexdigest()

    def watch(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", lambda *seen: self.pass_by(" ".join(seen[2].split()[:3])))
        event.listen(engine, "commit", lambda _: self.pass_by("commit"))


class WatchedRayJobs(RayJobs):
    interleaving: Interleaving

    def _request(self, method: str, path: str, **options: Any) -> Any:
        self.interleaving.pass_by(f"{method} before")
        answer = super()._request(method, path, **options)
        self.interleaving.pass_by(f"{method} after")
        return answer


class World:
    """Two replicas, their store and their cluster."""

    def __init__(self, directory: Path, database_url: str, seed: int, limits: Limits) -> None:
        self.directory, self.database_url, self.limits = directory, database_url, limits
        self.interleaving = Interleaving(seed)
        self.cluster = Cluster(seed, trouble=0.03)
        self.server = ClusterServer(self.cluster)
        self.store = self._open()
        self._ended = threading.Event()
        self._errors: list[Exception] = []
        self._threads = [threading.Thread(target=self.server.serve_forever, args=(0.01,))]
        self._threads += [threading.Thread(target=self._replica, name=name) for name in ("left", "right")]

    def _open(self) -> Store:
        return Store(open_engine(self.database_url), b"")

    def _replica(self) -> None:
        store = self._open()
        self.interleaving.watch(store._engine)
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        backend = WatchedRayJobs(
            url, "token", python="python", modules=DRIVER_MODULES, shares_filesystem=True, timeout_s=2.0
        )
        backend.interleaving = self.interleaving
        reconciler = Reconciler(
            store, backend, max_running_jobs=MAX_RUNNING, interval_s=0.02, limits=self.limits, unwanted_interval_s=0.1
        )
        try:
            while not self._ended.is_set():
                reconciler.reconcile()
        except Exception as error:  # noqa: BLE001  told where it can fail the test
            self._errors.append(error)
        finally:
            backend.close()
            store._engine.dispose()

    def live(self, spec: JobSpec, happenings: Callable[[World], None]) -> dict[str, Job]:
        """Post the jobs, let things happen, and wait until all have ended."""
        for thread in self._threads:
            thread.start()
        try:
            made = [
                self.store.create(Job, spec.model_copy(update={"name": name}), str(self.directory / "runs"))[0]
                for name in EXPECTED
            ]
            happenings(self)
            return self._wait(made)
        finally:
            self._ended.set()
            self.server.shutdown()
            for thread in self._threads:
                thread.join()
            self.server.server_close()
            self.store._engine.dispose()
            assert not self._errors, self._errors

    def _wait(self, made: list[Job]) -> dict[str, Job]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            jobs = {job.name: self.store.get(Job, job.id) for job in made}
            if jobs["waits"].status == "running":
                self.store.request_cancel(Job, jobs["waits"].id)
            with self.cluster.lock:
                is_quiet = not self.cluster.alive
            if is_quiet and all(job.is_terminal for job in jobs.values()):
                return jobs
            assert not self._errors, self._errors
            assert time.monotonic() < deadline, {name: (job.status, job.attempt) for name, job in jobs.items()}
            time.sleep(0.01)


@pytest.fixture(params=BOTH_DATABASES)
def databases(request: pytest.FixtureRequest) -> Databases:
    if request.param == "sqlite":
        migrated: Path = request.getfixturevalue("migrated")
        return lambda directory: nullcontext(f"sqlite:///{shutil.copy(migrated, directory / 'store.db')}")
    server = request.getfixturevalue("postgres")
    return lambda _directory: new_database(server, "template")


@pytest.fixture(autouse=True)
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SteppingDatetime]]:
    monkeypatch.setattr(transitions, "datetime", SteppingDatetime)
    yield SteppingDatetime
    SteppingDatetime.step = timedelta()


def nothing(_world: World) -> None:
    pass


def wall_clock_steps(world: World) -> None:
    for step in (timedelta(hours=-1), timedelta(days=1), timedelta(hours=-1)):
        time.sleep(0.03)
        SteppingDatetime.step = step


def network_is_cut(world: World) -> None:
    time.sleep(0.03)
    world.cluster.is_cut = True
    time.sleep(0.3)
    world.cluster.is_cut = False


def head_restarts(world: World) -> None:
    for _ in range(2):
        time.sleep(0.05)
        world.cluster.forget()


def drivers_are_killed(world: World) -> None:
    time.sleep(0.05)
    with world.cluster.lock:
        for driver in world.cluster.alive:
            driver.killed.set()


CHANGES_NOTHING = (nothing, wall_clock_steps, network_is_cut)
COSTS_ATTEMPTS = (head_restarts, drivers_are_killed)


def assert_right(world: World, jobs: dict[str, Job], happenings: Callable[[World], None]) -> None:
    for name, job in jobs.items():
        told_whole(world.store, job)
        status, attempt, code = EXPECTED[name]
        assert (job.status, job.error and job.error.code) == (status, code), job
        starts = [start for start in world.cluster.starts if start.startswith(job.id)]
        if happenings in CHANGES_NOTHING:
            assert job.attempt == attempt, name
            assert starts == [f"{job.id}-a{number}" for number in range(1, attempt + 1)], name
    if happenings is not head_restarts:  # whose orphans live on; the attempt's number tells them apart
        assert world.cluster.overlaps == []
        assert world.cluster.most_alive <= MAX_RUNNING, "no more start than there is room for"
    world.store._engine.dispose()


@pytest.mark.parametrize("happenings", [*CHANGES_NOTHING, *COSTS_ATTEMPTS])
def test_two_control_planes_agree_whatever_happens(
    tmp_path: Path,
    databases: Databases,
    spec: JobSpec,
    happenings: Callable[[World], None],
    record_property: Callable[[str, object], None],
) -> None:
    seen: set[str] = set()
    num_overlaps = 0
    for seed in range(SEEDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        with databases(directory) as database_url:
            world = World(directory, database_url, seed, Limits(max_attempts=5, backoff_s=0.01))
            jobs = world.live(spec, happenings)
            assert_right(world, jobs, happenings)
        seen.add(world.interleaving.name)
        num_overlaps += len(world.cluster.overlaps)
    told = f"{len(seen)} different interleavings in {SEEDS} runs, {num_overlaps} drivers beside an orphan"
    record_property(TRIED, f"{happenings.__name__}: {told}")


def test_a_driver_that_ray_never_starts_is_given_up_with_the_reason(
    tmp_path: Path, databases: Databases, spec: JobSpec
) -> None:
    limits = Limits(2, start_timeout_s=0.2, stop_timeout_s=0.2, backoff_s=0.01)
    with databases(tmp_path) as database_url:
        world = World(tmp_path, database_url, 1, limits)
        world.cluster.holds_pending = True
        try:
            jobs = world.live(spec, nothing)
        finally:
            world.cluster.forget()
    assert jobs.pop("waits").status == "cancelled"
    for job in jobs.values():
        assert job.error is not None
        assert (job.status, job.error.code, job.attempt) == ("failed", "driver_lost", 2)
        assert "Ray did not start the driver within" in job.error.message
