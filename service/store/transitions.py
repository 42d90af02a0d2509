"""How a run's state changes: by compare-and-set, with an event in the same transaction."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update

from service.errors import ConflictError
from service.spec.resources import TERMINAL_STATUSES, JobError, JobStatus, Run
from service.store.event_log import append_events, status_event
from service.store.models import JobRow
from service.store.runs import AnyRun, RunTables, read_run


class TransitionTables(RunTables):
    """States of jobs and sweeps."""

    def unfinished(self) -> list[Run]:
        """All jobs and sweeps that have not ended, oldest first."""
        with self._transaction() as session:
            query = select(JobRow).where(JobRow.status.not_in(TERMINAL_STATUSES)).order_by(JobRow.created_at, JobRow.id)
            return [read_run(row, None) for row in session.scalars(query)]

    def change_status(
        self,
        run: Run,
        status: JobStatus,
        *,
        attempt: int | None = None,
        error: JobError | None = None,
        reason: str = "",
    ) -> bool:
        """Move a job or a sweep on, if it still stands as the caller saw it.

        Args:
            run: as read before; its status and attempt are compared.
            status: the new one.
            attempt: the new attempt, if it rises.
            error: for `failed`.
            reason: why, for the run's history; by default the error's message.

        Returns:
            False when somebody else was faster; nothing was changed then.
        """
        now = datetime.now(UTC)
        values: dict[str, Any] = {"status": status}
        if attempt is not None:
            values["attempt"] = attempt
        if status == "running" and run.started_at is None:
            values["started_at"] = now
        if status in ("succeeded", "failed", "cancelled"):
            values["finished_at"] = now
        if status == "queued":  # again, so that it goes on
            values |= {"finished_at": None, "error": None, "attempts_before": run.attempt}
        if error is not None:
            values["error"] = error.model_dump()
        same = (JobRow.id == run.id) & (JobRow.status == run.status) & (JobRow.attempt == run.attempt)
        with self._transaction() as session:
            changed = session.execute(update(JobRow).where(same).values(**values))
            if changed.rowcount != 1:  # type: ignore[attr-defined]
                return False
            reason = reason or (error.message if error else "")
            new_attempt = run.attempt if attempt is None else attempt
            append_events(session, run.id, [status_event(run.status, status, new_attempt, reason)])
            self._record(session)
            return True

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
            if self.change_status(run, "cancelled" if run.status == "queued" else "cancelling", reason="asked to"):
                return self.get(resource, run_id)
