"""What runs say of themselves: segments of events taken in once each, and what is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from service.spec.event import Event
from service.spec.resources import Job, JobEvent, Run, RunKind, StepMetrics
from service.store.eta import watch_eta
from service.store.event_log import LAST_STEP, append_events
from service.store.models import EventRow, JobRow, SegmentRow
from service.store.progress import next_progress
from service.store.runs import RunTables


class EventTables(RunTables):
    """Events of jobs and sweeps, and the metrics of their steps."""

    def ingested_segments(self, run_id: str) -> set[str]:
        """Names of the segments already taken in."""
        with self._transaction() as session:
            return set(session.scalars(select(SegmentRow.name).where(SegmentRow.job_id == run_id)))

    def ingest_segment(self, run_id: str, name: str, events: Sequence[Event]) -> None:
        """Take a segment in, once: its name, its events and the progress in one transaction."""
        try:
            with self._transaction() as session:
                session.add(SegmentRow(job_id=run_id, name=name))
                session.flush()
                # locked, for the run's events are numbered through
                row = session.get_one(JobRow, run_id, with_for_update=True)
                progress, all_events = dict(row.progress), list[Event]()
                for item in events:
                    kind = cast("RunKind", row.kind)
                    progress, warning = watch_eta(next_progress(kind, progress, item), item)
                    if warning is not None:
                        progress = next_progress(kind, progress, warning)
                    all_events += [item] if warning is None else [item, warning]
                append_events(session, run_id, all_events)
                row.progress = progress
        except IntegrityError:
            if name not in self.ingested_segments(run_id):
                raise

    def list_events(
        self, resource: type[Run], run_id: str, *, after: int = 0, limit: int = 1000
    ) -> tuple[list[JobEvent], bool]:
        """Events of a job or a sweep in order, with sequences above `after`; and whether there are more."""
        self.get(resource, run_id)
        query = (
            select(EventRow)
            .where(EventRow.job_id == run_id, EventRow.sequence > after)
            .order_by(EventRow.sequence)
            .limit(limit + 1)
        )
        with self._transaction() as session:
            rows = session.scalars(query).all()
        return [read_event(row) for row in rows[:limit]], len(rows) > limit

    def find_verdict(self, run_id: str, attempt: int) -> JobEvent | None:
        """An attempt's own last word, `job.finished` or `job.failed`; None when it said neither."""
        query = (
            select(EventRow)
            .where(EventRow.job_id == run_id, EventRow.type.in_(("job.finished", "job.failed")))
            .order_by(EventRow.sequence.desc())
        )
        with self._transaction() as session:
            verdicts = [read_event(row) for row in session.scalars(query)]
        return next((event for event in verdicts if event.attempt == attempt), None)

    def list_metrics(
        self, run_id: str, *, after: int = 0, to_step: int = LAST_STEP, limit: int = 1000
    ) -> tuple[list[StepMetrics], bool]:
        """Metrics of the steps above `after`, up to `to_step`; of a step taken twice the last word."""
        self.get(Job, run_id)
        latest = (
            select(EventRow.step, func.max(EventRow.sequence).label("sequence"))
            .where(EventRow.job_id == run_id, EventRow.step > after, EventRow.step <= to_step)
            .group_by(EventRow.step)
            .order_by(EventRow.step)
            .limit(limit + 1)
            .subquery()
        )
        query = (
            select(EventRow)
            .join(latest, EventRow.sequence == latest.c.sequence)
            .where(EventRow.job_id == run_id)
            .order_by(EventRow.step)
        )
        with self._transaction() as session:
            rows = session.scalars(query).all()
        metrics = [StepMetrics(step=row.step or 0, data=row.event["data"]) for row in rows[:limit]]
        return metrics, len(rows) > limit


def read_event(row: EventRow) -> JobEvent:
    """The resource that a row holds."""
    return JobEvent.model_validate({**row.event, "sequence": row.sequence})
