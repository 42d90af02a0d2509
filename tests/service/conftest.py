from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.api.server import Server
from service.attempts import Limits
from service.client.client import Client
from service.datasets.datasets import Datasets, open_datasets
from service.datasets.limits import DatasetLimits
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Agreement, Candidate, Estimate, StageResult, SweepResults, Trial
from service.store.engine import migrate, open_engine
from service.store.key_text import new_api_key
from service.store.store import Store
from tests.service.postgres import find_programs, new_database, postgres_server, run_sql
from tests.service.recording_backend import RecordingBackend

SECRET = b"0" * 32
BOTH_DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server with a migrated database `template`; the URL less the database's name."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; `make system-packages` installs it")
    with postgres_server(programs) as url:
        run_sql(url, "CREATE DATABASE template")
        engine = open_engine(url.format("template"))
        migrate(engine)
        engine.dispose()
        yield url


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty embedded store."""
    path = tmp_path_factory.mktemp("migrated") / "store.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@pytest.fixture(params=BOTH_DATABASES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated"), tmp_path / "test.db")
        engine = open_engine(f"sqlite:///{tmp_path / 'test.db'}")
        yield engine
        engine.dispose()
        return
    with new_database(request.getfixturevalue("postgres"), "template") as url:
        engine = open_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine, SECRET)


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def datasets(store: Store, tmp_path: Path) -> Datasets:
    """Its worker's threads are not started: tests have it work by hand, or use `working`."""
    return open_datasets(store, str(tmp_path / "runs"), DatasetLimits(min_part_bytes=1, max_bytes=10_000_000))


@pytest.fixture
def working(datasets: Datasets) -> Iterator[None]:
    """The worker of the datasets at work."""
    datasets.worker.start()
    yield
    datasets.worker.stop()


@pytest.fixture
def reconciler(store: Store, backend: RecordingBackend, datasets: Datasets) -> Reconciler:
    return Reconciler(
        store,
        backend,
        max_running_jobs=1,
        interval_s=60.0,
        limits=Limits(backoff_s=0.0),
        resolve=datasets.resolve,
        unwanted_interval_s=0.0,
    )


@pytest.fixture
def parts(
    store: Store, backend: RecordingBackend, reconciler: Reconciler, datasets: Datasets, tmp_path: Path
) -> ControlPlane:
    return ControlPlane(store, backend, reconciler, str(tmp_path / "runs"), datasets)


@pytest.fixture
def key(store: Store) -> str:
    key = new_api_key()
    store.add_key(key)
    return key


@pytest.fixture
def app(parts: ControlPlane) -> FastAPI:
    """The real application, made once: while it serves, its threads' warnings and those of making it would mix."""
    return create_app(parts)


@pytest.fixture
def http(app: FastAPI, key: str) -> TestClient:
    """The application in process; the reconciler's loop is not started, tests look at the cluster by hand."""
    return TestClient(app, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The same over a real socket; still without the reconciler's loop."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that whoever comes early waits
        server = Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(url: str, key: str) -> Iterator[Client]:
    with Client(url, key) as client:
        yield client


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of this machine's, no address of this environment's."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLEDDOG_URL", "SLEDDOG_API_KEY", "SLEDDOG_API_KEY_FILE", "SLEDDOG_DATA_DIR", "SLEDDOG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def spec(job_document: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate(job_document)


@pytest.fixture
def sweep_document(job_document: dict[str, Any]) -> dict[str, Any]:
    """A small valid sweep over two categories."""
    [math] = job_document["data"]["sources"]
    job_document["data"]["sources"] = [math, math | {"name": "rhymes", "category": "general"}]
    job_document["evaluate"]["tasks"] = [{"kind": "gsm8k", "uri": "file:///gsm8k.jsonl"}]
    return {"name": "mixes", "base": job_document, "stages": [{"name": "proxy", "max_steps": 4}]}


@pytest.fixture
def sweep_spec(sweep_document: dict[str, Any]) -> SweepSpec:
    (Path(sweep_document["base"]["data"]["sources"][0]["uri"].removeprefix("file://")).parent / "gsm8k.jsonl").touch()
    return SweepSpec.model_validate(sweep_document)


@pytest.fixture
def results() -> SweepResults:
    """What a driver writes: two stages, a winner, a trial that failed."""

    def candidate(name: str, stage: str, math: float, score: float, rank: int, **fields: Any) -> Candidate:
        gain = Estimate(value=score, noise=0.01)
        fields |= {"mixture": {"general": 1 - math, "math": math}, "score": gain, "gains": {"held_out_loss": gain}}
        return Candidate(id=name, stage=stage, round=0, rank=rank, **fields)

    candidates = [
        candidate("proxy-base", "proxy", 0.5, 0.0, 3, role="base"),
        candidate("proxy-1", "proxy", 0.75, 0.03, 1, role="spread", is_beam=True, is_promoted=True),
        candidate("proxy-2", "proxy", 1.0, 0.02, 2, role="corner", is_beam=True, broken=["held_out_loss.general"]),
        candidate("target-base", "target", 0.5, 0.0, 2, role="base"),
        candidate("target-1", "target", 0.75, 0.05, 1, role="promoted", parent="proxy-1", is_beam=True),
    ]
    trials = [
        Trial(id=f"{found.id}-s0", candidate=found.id, stage=found.stage, seed=0, status="succeeded", duration_s=10)
        for found in candidates
    ]
    trials.append(trials[0].model_copy(update={"id": "proxy-base-s1", "seed": 1, "status": "failed", "reason": "no"}))
    stages = [
        StageResult(name="proxy", status="finished", num_trials=4, noise=0.01, best_score_by_round=[0.02, 0.03]),
        StageResult(name="target", status="finished", num_trials=2),
    ]
    agreement = Agreement(first="proxy", second="target", num_candidates=3, spearman=0.5, same_best=True)
    return SweepResults(
        stages=stages,
        candidates=candidates,
        trials=trials,
        agreements=[agreement],
        best="target-1",
        verdict=["More math is better by 5.0 %."],
        worker_seconds=60.0,
    )
