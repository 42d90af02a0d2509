"""What becomes of a run that has ended: it goes on, or is forgotten."""

from __future__ import annotations

from sqlalchemy import delete

from service.errors import ConflictError
from service.store.models import EventRow, FineTuningRow, JobDatasetRow, JobRow, SegmentRow
from service.store.runs import AnyRun
from service.store.transitions import TransitionTables


class LifecycleTables(TransitionTables):
    """Runs that have ended."""

    def request_resume(self, resource: type[AnyRun], run_id: str) -> AnyRun:
        """Queue a cancelled or failed job or sweep again; its next attempt goes on in the same run directory.

        Asking for one that waits or runs changes nothing.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has succeeded, or is still being cancelled.
        """
        while True:
            run = self.get(resource, run_id)
            if run.status == "succeeded":
                raise ConflictError(f"the {run.kind} has succeeded; there is nothing to resume")
            if run.status == "cancelling":
                raise ConflictError(f"the {run.kind} is still being cancelled; resume it once it is")
            if not run.is_terminal or self.change_status(run, "queued", reason="asked to go on"):
                return self.get(resource, run_id)

    def delete(self, resource: type[AnyRun], run_id: str) -> None:
        """Forget a job or a sweep that has ended, its events and the keys that made it.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has not ended, or has just been resumed.
        """
        run = self.require_ended(resource, run_id)
        with self._transaction() as session:
            for table in (EventRow, SegmentRow, FineTuningRow, JobDatasetRow):
                session.execute(delete(table).where(table.job_id == run_id))
            self._forget_made(session, run.kind, run_id)
            gone = session.execute(delete(JobRow).where(JobRow.id == run_id, JobRow.status == run.status))
            if gone.rowcount != 1:  # type: ignore[attr-defined]
                raise ConflictError(f"the {run.kind} has changed meanwhile; look at it again")
            self._record(session)

    def require_ended(self, resource: type[AnyRun], run_id: str) -> AnyRun:
        """A job or a sweep that has ended.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has not.
        """
        run = self.get(resource, run_id)
        if not run.is_terminal:
            raise ConflictError(f"the {run.kind} is {run.status}; cancel it, and wait until it has ended")
        return run
