"""How many runs there are, and how they stand: what an operator watches."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, cast

from sqlalchemy import func, select

from service.spec.resources import JobStatus, RunKind
from service.store.engine import Tables
from service.store.models import JobRow


class RunCount(NamedTuple):
    """Runs of a kind that stand alike."""

    kind: RunKind
    status: JobStatus
    num_runs: int
    oldest: datetime
    """When the first of them was created."""


class CountTables(Tables):
    """Counts over jobs and sweeps."""

    def counts(self) -> list[RunCount]:
        """Of each kind and status that there is."""
        query = select(JobRow.kind, JobRow.status, func.count(), func.min(JobRow.created_at))
        with self._transaction() as session:
            rows = session.execute(query.group_by(JobRow.kind, JobRow.status)).all()
        return [RunCount(cast("RunKind", kind), cast("JobStatus", status), n, at) for kind, status, n, at in rows]
