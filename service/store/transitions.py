"""How a run's state changes: by compare-and-set, with an event in the same transaction."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import update
from sqlalchemy.orm import Session

from service.errors import ConflictError, PreconditionFailedError
from service.spec.event import Event
from service.spec.resources import TERMINAL_STATUSES, UNFINISHED_STATUSES, Job, JobError, JobStatus, Run, Sweep
from service.store.event_log import append_events, status_event
from service.store.models import JobRow, SchedulerRow
from service.store.run_rows import RUNS, read_run
from service.store.runs import AnyRun, RunTables, next_position, quotas_of, require_priority
from service.store.waiting import QueuedRun

Standing = Run | QueuedRun
"""A run as it was read; a change of its state goes by how it stood then."""


class TransitionTables(RunTables):
    """States of jobs and sweeps."""

    def unfinished(self, statuses: Collection[JobStatus] = UNFINISHED_STATUSES) -> list[Job | Sweep]:
        """Jobs and sweeps that have not ended, oldest first.

        Args:
            statuses: only those in one of them.
        """
        query = self._own_runs().where(RUNS.status.in_(statuses)).order_by(RUNS.created_at, RUNS.id)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [read_run(row) for row in rows]

    def change_status(
        self,
        run: Standing,
        status: JobStatus,
        *,
        attempt: int | None = None,
        error: JobError | None = None,
        reason: str = "",
        expected_turn: int | None = None,
    ) -> bool:
        """Move a job or a sweep on, if it still stands as the caller saw it.

        Args:
            run: as read before; its status and attempt are compared.
            status: the new one.
            attempt: the new attempt, if it rises.
            error: for `failed`.
            reason: why, for the run's history; by default the error's message.
            expected_turn: of the scheduler, which this takes; by default it takes none.

        Returns:
            False when somebody else was faster; nothing was changed then.
        """
        same = (JobRow.id == run.id) & (JobRow.status == run.status) & (JobRow.attempt == run.attempt)
        new_attempt = run.attempt if attempt is None else attempt
        with self._transaction() as session:
            values = _values(run, status, error) | {"attempt": new_attempt}
            changed = session.execute(update(JobRow).where(same).values(**values))
            if changed.rowcount != 1:  # type: ignore[attr-defined]
                return False
            if expected_turn is not None and not _take_turn(session, expected_turn):
                session.rollback()
                return False
            _move_queue(session, run, status)
            reason = reason or (error.message if error else "")
            append_events(session, run.id, [status_event(run.status, status, new_attempt, reason)])
            self._record(session)
            return True

    def turn(self) -> int:
        """Rises with each start of a queued run."""
        with self._transaction() as session:
            return session.get_one(SchedulerRow, 1).turn

    def start(self, run: Standing, turn: int) -> bool:
        """Let a queued run begin its next attempt, if no other was started since the turn was read.

        Args:
            run: as read after the turn.
            turn: as it was then, plus the runs that the caller has started since.

        Returns:
            False when somebody else was faster; nothing was changed then.
        """
        return self.change_status(
            run, "submitting", attempt=run.attempt + 1, reason="its turn has come", expected_turn=turn
        )

    def request_cancel(self, resource: type[AnyRun], run_id: str) -> AnyRun:
        """Cancel a job or a sweep: at once when it has not started, else by asking the reconciler.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has already succeeded or failed.
        """
        while True:
            run = self.get(resource, run_id)
            if run.status in ("cancelling", "cancelled"):
                return run
            if run.is_terminal:
                raise ConflictError(f"the {run.kind} has already {run.status}; there is nothing to cancel")
            has_begun = run.status not in ("needs_approval", "queued")
            if self.change_status(run, "cancelling" if has_begun else "cancelled", reason="asked to"):
                return self.get(resource, run_id)

    def change_priority(
        self, resource: type[AnyRun], run_id: str, priority: int, expected: AnyRun | None = None
    ) -> AnyRun:
        """Let a job or a sweep that waits go earlier or later; to ask for what it has changes nothing.

        Args:
            resource: of which kind.
            run_id: which.
            priority: the new one.
            expected: as somebody has seen it; by default it may have changed since.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it waits no more.
            PreconditionFailedError: it is not as expected.
            InvalidSpecError: the project may not ask for that much.
        """
        while True:
            run = self.get(resource, run_id) if expected is None else expected
            if run.status not in ("needs_approval", "queued"):
                raise ConflictError(f"the {run.kind} is {run.status}; only the priority of one that waits can change")
            if run.priority == priority or self._set_priority(run, priority):
                return self.get(resource, run_id)
            if expected is not None:
                raise PreconditionFailedError(f"the {run.kind} has changed meanwhile; look at it again")

    def _set_priority(self, run: Run, priority: int) -> bool:
        same = (JobRow.id == run.id) & (JobRow.status == run.status) & (JobRow.priority == run.priority)
        with self._transaction() as session:
            require_priority(quotas_of(session, run.project), priority)
            changed = session.execute(update(JobRow).where(same).values(priority=priority))
            if changed.rowcount != 1:  # type: ignore[attr-defined]
                return False
            data: dict[str, JsonValue] = {"old": run.priority, "new": priority}
            append_events(session, run.id, [Event(type="job.priority", attempt=max(run.attempt, 1), data=data)])
            self._record(session)
            return True

    def approve(self, resource: type[AnyRun], run_id: str) -> AnyRun:
        """Let a job or a sweep into the queue that awaits it; approving twice is no error.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has ended.
        """
        while True:
            run = self.get(resource, run_id)
            if run.is_terminal:
                raise ConflictError(f"the {run.kind} has already {run.status}; there is nothing to approve")
            by = f"approved by {self._principal.user}" if self._principal else "approved"
            if run.status != "needs_approval" or self.change_status(run, "queued", reason=by):
                return self.get(resource, run_id)


def _values(run: Standing, status: JobStatus, error: JobError | None) -> dict[str, Any]:
    """What a row holds in a state."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {"status": status, "queue_position": None, "queue_reason": None, "queue_eta_s": None}
    if status == "running":
        values |= {"started_at": run.started_at or now, "charged_at": now}
    if status in TERMINAL_STATUSES:
        values["finished_at"] = now
    if status == "queued":  # again, so that it goes on
        values |= {"finished_at": None, "error": None, "attempts_before": run.attempt}
    if error is not None:
        values["error"] = error.model_dump()
    return values


def _take_turn(session: Session, expected: int) -> bool:
    taken = session.execute(update(SchedulerRow).where(SchedulerRow.turn == expected).values(turn=expected + 1))
    return bool(taken.rowcount == 1)  # type: ignore[attr-defined]


def _move_queue(session: Session, run: Standing, status: JobStatus) -> None:
    """Let those behind a run that has left the queue move up, and one that has come to it stand at its end."""
    if run.queue_position is not None:
        behind = (JobRow.status == "queued") & (JobRow.queue_position > run.queue_position)
        session.execute(update(JobRow).where(behind).values(queue_position=JobRow.queue_position - 1))
    if status == "queued":
        last = next_position(session) - 1  # which counts the run itself
        session.execute(update(JobRow).where(JobRow.id == run.id).values(queue_position=last))
