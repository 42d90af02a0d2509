from __future__ import annotations

import fcntl
import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
import yaml

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.api.server import Server
from service.attempts import Limits
from service.client.client import Client
from service.client.spec_file import load_spec
from service.datasets import worker
from service.datasets.datasets import open_datasets
from service.datasets.limits import DatasetLimits
from service.datasets.process import perform
from service.reconcile import Reconciler
from service.spec.sweep_results import SweepResults
from service.store.engine import migrate, open_engine
from service.store.key_text import new_api_key
from service.store.store import Store
from tests.docs.pages import ROOT
from tests.docs.quick_cluster import QuickCluster
from tests.docs.running import Reader
from tests.docs.site import Site, build
from tests.docs.specs import whole_job
from tests.service.conftest import SECRET, apart  # noqa: F401  a fixture

FINISHED_SWEEP = ROOT / "tests/service/web/finished_sweep.json"
ROW = {"messages": [{"role": "user", "content": "Who pulls?"}, {"role": "assistant", "content": "The dogs."}]}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site, built once, also where several processes of pytest share the tests."""
    base = tmp_path_factory.getbasetemp()
    directory = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    target, whole = directory / "site", directory / "site-is-whole"
    with (directory / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            done = build(ROOT / "docs", target)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
            whole.touch()
    return Site(target)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and key of a whole control plane over SQLite, its loops running, on a cluster that is done at once."""
    directory = tmp_path_factory.mktemp("service")
    engine = open_engine(f"sqlite:///{directory / 'store.db'}")
    migrate(engine)
    found = SweepResults.model_validate(json.loads(FINISHED_SWEEP.read_text())["results"])
    store, cluster, runs = Store(engine, SECRET), QuickCluster(found), str(directory / "runs")
    store.add_key(key := new_api_key())
    datasets = open_datasets(store, runs, DatasetLimits(min_part_bytes=1, max_bytes=10_000_000))
    limits = Limits(backoff_s=0.0)
    reconciler = Reconciler(store, cluster, max_running_jobs=4, interval_s=0.1, limits=limits, resolve=datasets.resolve)
    app = create_app(ControlPlane(store, cluster, reconciler, runs, datasets))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that whoever comes early waits
        server = Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", key
        server.should_exit = True
        thread.join()
    store.close()


@pytest.fixture
def reader(service: tuple[str, str], apart: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:  # noqa: F811
    """Somebody with a key, data, and two jobs: one that the storage failed, and the latest, which has succeeded."""
    url, key = service
    for name, value in {"SLEDDOG_URL": url, "SLEDDOG_API_KEY": key, "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    # files are read in this process; that another one does it is tests/service/test_datasets.py's subject
    monkeypatch.setattr(worker, "run_task", lambda task, **_limits: perform(task))
    write_files(tmp_path, key)
    with Client() as client:
        for name in ("unlucky", "support"):
            job = client.jobs.create(load_spec(tmp_path / "job.yaml").model_copy(update={"name": name}))
            while not client.jobs.get(job.id).is_terminal:
                time.sleep(0.05)
    return Reader(url, tmp_path)


def write_files(directory: Path, key: str) -> None:
    """What pages take for granted."""
    rows = (json.dumps(ROW) + "\n") * 20
    for name in ("rows.jsonl", "tickets.jsonl", "chats.jsonl"):
        (directory / name).write_text(rows)
    (directory / "tickets.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (directory / ".sleddog").mkdir()
    (directory / ".sleddog/api-key").write_text(key)
    job = whole_job("code", "general", "identity", "math")
    stages = [{"name": "proxy", "max_steps": 4}, {"name": "target", "max_steps": 4}]
    (directory / "job.yaml").write_text(yaml.safe_dump(job))
    (directory / "sweep.yaml").write_text(yaml.safe_dump({"name": "mixes", "base": "job.yaml", "stages": stages}))
