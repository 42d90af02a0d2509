"""What an operator watches of the store: how many runs stand how, what waits, what runs, what is in the outbox.

Read at each scrape, so by indices: the count of all runs looks at no row; rows are read of what waits and runs only.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import case, func, select, text

from service.spec.resources import JobStatus, RunKind
from service.store.engine import Tables
from service.store.models import DeliveryRow, WebhookRow
from service.store.run_rows import RUNS

_SIZE = {
    "sqlite": text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"),
    "postgresql": text("SELECT pg_database_size(current_database())"),
}
_RUNS = select(RUNS.kind, RUNS.status, func.count()).group_by(RUNS.kind, RUNS.status)
# what gave way, or is asked to go on, has waited since it last ran
_SINCE = case((RUNS.charged_at > RUNS.created_at, RUNS.charged_at), else_=RUNS.created_at)
_QUEUES = select(RUNS.project_id, func.count(), func.min(_SINCE)).where(RUNS.status == "queued")
_QUEUES = _QUEUES.group_by(RUNS.project_id)
_RUNNING = select(RUNS.id, RUNS.name, RUNS.project_id, RUNS.attempt, RUNS.started_at, RUNS.gpu_seconds, RUNS.progress)
_RUNNING = _RUNNING.where(RUNS.kind == "job", RUNS.status == "running").order_by(RUNS.created_at, RUNS.id)
_OUTBOX = select(func.count(), func.min(DeliveryRow.next_attempt_at)).join(WebhookRow)
_OUTBOX = _OUTBOX.where(DeliveryRow.status == "pending", WebhookRow.disabled_at.is_(None))
_WEBHOOKS = select(func.count(WebhookRow.id), func.count(WebhookRow.disabled_at))
_FAILING = select(func.count()).where(WebhookRow.disabled_at.is_(None), WebhookRow.failing_since.is_not(None))


class RunCount(NamedTuple):
    """Runs of a kind that stand alike."""

    kind: RunKind
    status: JobStatus
    num_runs: int


class QueueCount(NamedTuple):
    """What waits of a project."""

    project: str
    num_runs: int
    since: datetime
    """When the first of them was posted, or last ran."""


class RunningJob(NamedTuple):
    """A job that runs; fields as of `service.spec.resources.Job`, `progress` as the store keeps it."""

    id: str
    name: str
    project: str
    attempt: int
    started_at: datetime
    gpu_seconds: float
    progress: dict[str, Any]


class OutboxCount(NamedTuple):
    """Messages that wait, and their receivers."""

    num_pending: int
    """To receivers that are not disabled."""
    due_since: datetime | None
    """When the first of them was, or will be, due; None when there is none."""
    num_receivers: dict[str, int]
    """By state: `active`, `failing`, `disabled`."""


class CountTables(Tables):
    """Counts for monitoring."""

    def counts(self) -> list[RunCount]:
        """Of each kind and status that there is."""
        with self._reading() as connection:
            rows = connection.execute(_RUNS).all()
        return [RunCount(cast("RunKind", kind), cast("JobStatus", status), n) for kind, status, n in rows]

    def queues(self) -> list[QueueCount]:
        """Of each project of which anything waits."""
        with self._reading() as connection:
            return [QueueCount(*row) for row in connection.execute(_QUEUES)]

    def running_jobs(self) -> list[RunningJob]:
        """Oldest first."""
        with self._reading() as connection:
            return [RunningJob(*row) for row in connection.execute(_RUNNING)]

    def outbox(self) -> OutboxCount:
        """Of all projects."""
        with self._reading() as connection:
            num_pending, due_since = connection.execute(_OUTBOX).one()
            num_all, num_disabled = connection.execute(_WEBHOOKS).one()
            num_failing = connection.execute(_FAILING).scalar_one()
        states = {"active": num_all - num_disabled - num_failing, "failing": num_failing, "disabled": num_disabled}
        return OutboxCount(num_pending, due_since, states)

    def size_bytes(self) -> int:
        """Of the database."""
        with self._reading() as connection:
            return int(connection.execute(_SIZE[self._engine.dialect.name]).scalar_one())

    @property
    def path(self) -> Path | None:
        """The database's file; None where a server has it."""
        name = self._engine.url.database
        return Path(name) if self.is_embedded and name else None
