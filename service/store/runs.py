"""Jobs and sweeps: one row each, and every change of its state a compare-and-set in one transaction."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.errors import ConflictError, NotFoundError
from service.spec.job import JobSpec
from service.spec.resources import Job, JobError, JobStatus, Run, RunKind, Sweep
from service.spec.sweep import SweepSpec
from service.store.engine import Tables
from service.store.models import IdempotencyRow, JobRow

AnyRun = TypeVar("AnyRun", bound=Run)

_RESOURCES: dict[RunKind, type[Job] | type[Sweep]] = {"job": Job, "sweep": Sweep}


def new_id(kind: RunKind) -> str:
    """Sortable by time, unguessable, and safe as a file name and a Ray submission id."""
    return f"{kind}-{int(time.time()):x}-{secrets.token_hex(4)}"


class RunTables(Tables):
    """Jobs and sweeps.

    A method that takes a `resource` knows only those of its kind: a sweep is no job, and not found among them.
    """

    def create(
        self,
        resource: type[AnyRun],
        spec: JobSpec | SweepSpec,
        runs_url: str,
        idempotency_key: str | None = None,
        retry_of: str | None = None,
    ) -> tuple[AnyRun, bool]:
        """Accept a job or a sweep.

        Args:
            resource: `Job` or `Sweep`.
            spec: what is asked, of the same kind.
            runs_url: root of the run directories.
            idempotency_key: the same key with the same spec gives the same one again.
            retry_of: id of the job that this one is a retry of, if it is.

        Returns:
            What was accepted, and whether it is new.

        Raises:
            ConflictError: the key was used with another spec.
        """
        run_id, digest = new_id(resource.kind), spec.sha256()
        row = JobRow(
            id=run_id,
            kind=resource.kind,
            name=spec.name,
            status="queued",
            attempt=0,
            spec=spec.model_dump(mode="json"),
            spec_sha256=digest,
            run_url=f"{runs_url}/{run_id}",
            created_at=datetime.now(UTC),
            progress={},
            retry_of=retry_of,
        )
        try:
            with self._transaction() as session:
                session.add(row)
                session.flush()
                if idempotency_key is not None:
                    session.add(IdempotencyRow(key=idempotency_key, body_sha256=digest, job_id=run_id))
        except IntegrityError:
            if idempotency_key is None:
                raise
            found = self.find_of_key(resource, idempotency_key, spec)
            assert found is not None, "the key's row was just seen"
            return found, False
        return self.get(resource, run_id), True

    def find_of_key(self, resource: type[AnyRun], idempotency_key: str, spec: JobSpec | SweepSpec) -> AnyRun | None:
        """What a create with this key and this spec made; None when there was none.

        Raises:
            ConflictError: the key was used with another spec.
        """
        with self._transaction() as session:
            used = session.get(IdempotencyRow, idempotency_key)
        if used is None:
            return None
        if used.body_sha256 != spec.sha256():
            raise ConflictError("this Idempotency-Key was used with another body; use a new one", "Idempotency-Key")
        return self.get(resource, used.job_id)

    def find(self, run_id: str) -> Run | None:
        """One job or sweep; None when there is none of this id."""
        with self._transaction() as session:
            row = session.get(JobRow, run_id)
            return None if row is None else _run(row, self._queue_position(session, row))

    def get(self, resource: type[AnyRun], run_id: str) -> AnyRun:
        """One job, or one sweep.

        Raises:
            NotFoundError: there is none of this id.
        """
        run = self.find(run_id)
        if not isinstance(run, resource):
            raise NotFoundError(f"there is no {resource.kind} {run_id!r}")
        return run

    def list_runs(
        self,
        resource: type[AnyRun],
        *,
        statuses: Collection[JobStatus] = (),
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[AnyRun], bool]:
        """Jobs, or sweeps, newest first, from the one after `after` on; and whether there are more.

        Raises:
            NotFoundError: `after` is none.
        """
        query = select(JobRow).where(JobRow.kind == resource.kind)
        query = query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
        if statuses:
            query = query.where(JobRow.status.in_(statuses))
        if after is not None:
            last = self.get(resource, after)
            older = (JobRow.created_at < last.created_at) | (
                (JobRow.created_at == last.created_at) & (JobRow.id < last.id)
            )
            query = query.where(older)
        with self._transaction() as session:
            rows = session.scalars(query).all()
            runs = [cast("AnyRun", _run(row, self._queue_position(session, row))) for row in rows[:limit]]
        return runs, len(rows) > limit

    def unfinished(self) -> list[Run]:
        """All jobs and sweeps that have not ended, oldest first."""
        statuses = ("queued", "submitting", "running", "cancelling")
        with self._transaction() as session:
            query = select(JobRow).where(JobRow.status.in_(statuses)).order_by(JobRow.created_at, JobRow.id)
            return [_run(row, None) for row in session.scalars(query)]

    def _queue_position(self, session: Session, row: JobRow) -> int | None:
        if row.status != "queued":
            return None
        earlier = (JobRow.created_at < row.created_at) | ((JobRow.created_at == row.created_at) & (JobRow.id < row.id))
        ahead = select(func.count()).select_from(JobRow).where(JobRow.status == "queued", earlier)
        return 1 + (session.scalar(ahead) or 0)

    def change_status(
        self,
        run: Run,
        status: JobStatus,
        *,
        attempt: int | None = None,
        error: JobError | None = None,
    ) -> bool:
        """Move a job or a sweep on, if it still stands as the caller saw it.

        Args:
            run: as read before; its status and attempt are compared.
            status: the new one.
            attempt: the new attempt, if it rises.
            error: for `failed`.

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
            return bool(changed.rowcount == 1)  # type: ignore[attr-defined]

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
            if self.change_status(run, "cancelled" if run.status == "queued" else "cancelling"):
                return self.get(resource, run_id)


def _run(row: JobRow, queue_position: int | None) -> Job | Sweep:
    run = _RESOURCES[cast("RunKind", row.kind)].model_validate(row, from_attributes=True)
    return run.model_copy(update={"queue_position": queue_position})
