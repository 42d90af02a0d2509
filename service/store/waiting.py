"""The queue, read without the specs: thousands of runs may wait, and the scheduler looks at all of them each time."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import select

from service.store.engine import Tables
from service.store.run_rows import RUNS


class QueuedRun(NamedTuple):
    """A job or a sweep in the queue; fields as those of `service.spec.resources.Run`."""

    id: str
    project: str
    attempt: int
    priority: int
    queue_position: int | None
    queue_reason: str | None
    queue_eta_s: float | None
    started_at: datetime | None

    @property
    def status(self) -> Literal["queued"]:
        """As it was read."""
        return "queued"


_COLUMNS = [RUNS[{"project": "project_id"}.get(name, name)] for name in QueuedRun._fields]
_QUEUED = select(*_COLUMNS).where(RUNS.status == "queued").order_by(RUNS.created_at, RUNS.id)

_MOST_AT_ONCE = 1000
"""Databases limit the values of a statement."""


class WaitingTables(Tables):
    """Runs that wait."""

    def queued(self) -> list[QueuedRun]:
        """Of all projects, oldest first."""
        with self._reading() as connection:
            return [QueuedRun(*row) for row in connection.execute(_QUEUED)]

    def specs(self, run_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Specs by id; those of runs that there are no more are left out."""
        found: dict[str, dict[str, Any]] = {}
        ids = list(run_ids)
        with self._reading() as connection:
            for start in range(0, len(ids), _MOST_AT_ONCE):
                some = RUNS.id.in_(ids[start : start + _MOST_AT_ONCE])
                rows = connection.execute(select(RUNS.id, RUNS.spec).where(some))
                found |= {run_id: spec for run_id, spec in rows}  # noqa: C416  a dict of rows is not typed
        return found
