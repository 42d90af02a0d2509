"""A real control plane in a process of its own, over a real database file, that is killed at a chosen point.

Points are counted from outside the product: statements and commits are seen by SQLAlchemy's own events, what they are
for by a subclass of the store, and the cluster by a subclass of its client. A point's label says what was being done,
to which job, and when (before or after), so that the same point is found again in another run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from service import attempts
from service.api.app import assemble, create_app, open_store
from service.api.server import Server
from service.attempts import Limits
from service.backends.ray_jobs import RayJobs
from service.reconcile import Reconciler
from service.serve import ensure_first_key
from service.settings import DRIVER_MODULES, Settings
from service.spec.base import SpecModel
from service.spec.event import Event
from service.spec.resources import Run
from service.store.store import Store
from tests.processes import start_process

_RUN_ID = re.compile(r"(?:job|sweep)-[0-9a-f]+-[0-9a-f]{8}")
_WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP")


class KillPoints:
    """Counts the points that a process passes, and ends it at one, as SIGKILL does: at once and without a word.

    Args:
        trace: file that the labels are appended to.
        label: of the point to die at, the first time that it is passed.
        number: of the point to die at, whatever its label; 0 for none.
    """

    def __init__(self, trace: Path, label: str | None = None, number: int = 0) -> None:
        self._trace, self._label, self._number = trace, label, number
        self._count, self._lock = itertools.count(1), threading.Lock()
        self._names: dict[str, str] = {}
        self._here = threading.local()

    def pass_by(self, label: str) -> None:
        label = _RUN_ID.sub(lambda found: self._names.get(found[0], "?"), label)
        with self._lock:
            with self._trace.open("a") as trace:
                trace.write(f"{label}\n")
            if label == self._label or next(self._count) == self._number:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: type, what: str) -> type:
        """A subclass whose calls are points (of a cluster), or give the points within them a name (of the store)."""
        names = [name for name in dir(owner) if not name.startswith("_") and callable(getattr(owner, name))]
        wrap = self._named if what == "store" else self._bracketed
        return type(owner.__name__, (owner,), {name: wrap(getattr(owner, name)) for name in names})

    def watch_database(self) -> None:
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Session, "before_commit", lambda _: self._on_commit("before"))
        event.listen(Session, "after_commit", lambda _: self._on_commit("after"))

    def bracket(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function between two points."""

        def passed(*arguments: Any, **options: Any) -> Any:
            self.pass_by(f"before {name}")
            result = function(*arguments, **options)
            self.pass_by(f"after {name}")
            return result

        return passed

    def _named(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def named(store: Any, *arguments: Any, **options: Any) -> Any:
            self._learn(arguments)
            outer = getattr(self._here, "operation", "start")
            self._here.operation = " ".join([method.__name__, *map(_described, (*arguments, *options.values()))])
            try:
                result = method(store, *arguments, **options)
            finally:
                self._here.operation = outer
            self._learn(result if isinstance(result, (list, tuple)) else (result,))
            return result

        return named

    def _bracketed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def bracketed(backend: Any, *arguments: Any) -> Any:
            call = f"{method.__name__} {' '.join(map(str, arguments[:1]))}"
            self.pass_by(f"before {call}")
            result = method(backend, *arguments)
            seen = f" {result[0]}" if method.__name__ == "state" and result else ""
            self.pass_by(f"after {call}{seen}")
            return result

        return bracketed

    def _learn(self, values: Any) -> None:
        self._names |= {run.id: run.name for run in values if isinstance(run, Run)}

    def _on_statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split()
        if words[0] in _WRITES:
            self._here.is_writing = True
            table = next(word for word in words[1:] if word not in ("INTO", "TABLE", "INDEX", "FROM", "UNIQUE"))
            self.pass_by(f"before {words[0]} {table} of {self._operation}")

    def _on_commit(self, when: str) -> None:
        if getattr(self._here, "is_writing", False):
            self.pass_by(f"{when} COMMIT of {self._operation}")
        if when == "after":
            self._here.is_writing = False

    @property
    def _operation(self) -> str:
        return str(getattr(self._here, "operation", "start"))


def _described(value: object) -> str:
    if isinstance(value, Run):
        return f"{value.id} {value.status} {value.attempt}"
    if isinstance(value, SpecModel):
        return str(getattr(value, "name", ""))
    if isinstance(value, list) and value and isinstance(value[0], Event):
        return ",".join(f"{item.type}@{item.attempt}" for item in value)
    return value if isinstance(value, str) and re.fullmatch(r"[a-z_]+|(job|sweep)-[0-9a-f-]+", value) else ""


@dataclass(frozen=True)
class Place:
    """What outlives a control plane."""

    directory: Path
    database_url: str
    cluster_url: str
    listener: socket.socket

    @property
    def settings(self) -> Settings:
        return Settings(self.directory, database_url=self.database_url)

    @property
    def trace(self) -> Path:
        return self.directory / "trace"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def start(self, **kill_at: Any) -> BaseProcess:
        """Start a control plane; `kill_at` as `KillPoints` takes it."""
        return start_process(_serve, self, kill_at)


def _serve(place: Place, kill_at: dict[str, Any]) -> None:
    points = KillPoints(place.trace, **kill_at)
    points.watch_database()
    attempts.write_spec = points.bracket("write_spec", attempts.write_spec)
    ensure_first_key(place.settings)
    opened = open_store(place.settings)
    store: Store = points.watch(Store, "store")(opened._engine, opened._secret)
    backend: RayJobs = points.watch(RayJobs, "cluster")(
        place.cluster_url, "token", python="python", modules=DRIVER_MODULES, shares_filesystem=True, timeout_s=5.0
    )
    reconciler = Reconciler(
        store,
        backend,
        max_running_jobs=3,
        interval_s=0.02,
        limits=Limits(backoff_s=0.02),
        unwanted_interval_s=0.3,
    )
    parts = dataclasses.replace(assemble(place.settings, store, backend), reconciler=reconciler)
    server = Server(uvicorn.Config(create_app(parts), log_level="critical", access_log=False))
    server.run(sockets=[place.listener])
