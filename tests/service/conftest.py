from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.client.client import Client
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.store.store import Store, migrate, new_api_key, open_engine
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def store(tmp_path: Path) -> Store:
    engine = open_engine(f"sqlite:///{tmp_path / 'test.db'}")
    migrate(engine)
    return Store(engine)


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def reconciler(store: Store, backend: RecordingBackend) -> Reconciler:
    return Reconciler(store, backend, max_running_jobs=1, max_attempts=3, interval_s=60.0, unwanted_interval_s=0.0)


@pytest.fixture
def parts(store: Store, backend: RecordingBackend, reconciler: Reconciler, tmp_path: Path) -> ControlPlane:
    return ControlPlane(store, backend, reconciler, str(tmp_path / "runs"))


@pytest.fixture
def key(store: Store) -> str:
    key = new_api_key()
    store.add_key(key)
    return key


@pytest.fixture
def http(parts: ControlPlane, key: str) -> TestClient:
    """The real application, in process; the reconciler's loop is not started, tests look at the cluster by hand."""
    return TestClient(create_app(parts), headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False)


@pytest.fixture
def url(parts: ControlPlane) -> Iterator[str]:
    """The same over a real socket; still without the reconciler's loop."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(parts), lifespan="off", log_level="warning"))
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
def spec(job_document: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate(job_document)
