"""How far runs are, read for many at once and cheaply: what a follower of runs asks again and again."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, cast

from sqlalchemy import func, select

from service.spec.resources import TERMINAL_STATUSES, JobEvent, JobStatus
from service.store.engine import Tables
from service.store.models import EventRow, JobRow


class RunHead(NamedTuple):
    """What differs when anything has happened in a run."""

    status: JobStatus
    attempt: int
    last_sequence: int

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in TERMINAL_STATUSES


class HeadTables(Tables):
    """Heads of jobs and sweeps, and the events behind one."""

    def heads(self, run_ids: Collection[str]) -> dict[str, RunHead]:
        """Heads by id; those that there are no more are left out."""
        # a subquery a run reads one end of an index; a GROUP BY would read every event of every run
        last = select(func.max(EventRow.sequence)).where(EventRow.job_id == JobRow.id).scalar_subquery()
        query = select(JobRow.id, JobRow.status, JobRow.attempt, func.coalesce(last, 0)).where(JobRow.id.in_(run_ids))
        with self._transaction() as session:
            rows = session.execute(query).all()
        return {run_id: RunHead(cast("JobStatus", status), attempt, last) for run_id, status, attempt, last in rows}

    def events_after(self, run_id: str, after: int, limit: int) -> list[JobEvent]:
        """Events with sequences above `after`, in order; none also where the run is gone."""
        query = select(EventRow).where(EventRow.job_id == run_id, EventRow.sequence > after)
        with self._transaction() as session:
            rows = session.scalars(query.order_by(EventRow.sequence).limit(limit)).all()
        return [_event(row) for row in rows]

    def events_of_types(self, run_id: str, types: Collection[str]) -> list[JobEvent]:
        """All events of some types, in order."""
        query = select(EventRow).where(EventRow.job_id == run_id, EventRow.type.in_(types))
        with self._transaction() as session:
            rows = session.scalars(query.order_by(EventRow.sequence)).all()
        return [_event(row) for row in rows]


def _event(row: EventRow) -> JobEvent:
    return JobEvent.model_validate({**row.event, "sequence": row.sequence})
