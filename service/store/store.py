"""The store: every change of a job's state is a compare-and-set in one transaction.

The store is the truth about what was asked and decided; Ray is only observed. So a caller first writes what it is about
to do, then does it, and after a crash the reconciler finds the intent here.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.errors import ConflictError, NotFoundError
from service.spec.event import Event
from service.spec.job import JobSpec
from service.spec.resources import Job, JobError, JobEvent, JobStatus, Run, RunKind, StepMetrics, Sweep
from service.spec.sweep import SweepSpec
from service.store.models import ApiKeyRow, EventRow, IdempotencyRow, JobRow, SegmentRow
from service.store.progress import fold_progress

AnyRun = TypeVar("AnyRun", bound=Run)

_RESOURCES: dict[RunKind, type[Job] | type[Sweep]] = {"job": Job, "sweep": Sweep}
_MIGRATIONS = Path(__file__).parent / "migrations"
_SQLITE_BUSY_TIMEOUT_MS = 10_000


def open_engine(url: str) -> Engine:
    """Connect, with SQLite made durable and concurrent: write-ahead log, waits instead of failing, foreign keys."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode=WAL", f"busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to this version; safe to repeat."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def new_api_key() -> str:
    """256 random bits, with a prefix that secret scanners can look for."""
    return f"sd-{secrets.token_urlsafe(32)}"


def new_id(kind: RunKind) -> str:
    """Sortable by time, unguessable, and safe as a file name and a Ray submission id."""
    return f"{kind}-{int(time.time()):x}-{secrets.token_hex(4)}"


class Store:
    """Jobs and sweeps, their events, and API keys.

    A method that takes a `resource` knows only those of its kind: a sweep is no job, and not found among them.

    Args:
        engine: of a migrated database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def ping(self) -> None:
        """Raise when the database does not answer."""
        with self._transaction() as session:
            session.execute(select(1))

    # --- keys

    def has_keys(self) -> bool:
        """Whether any API key was made."""
        with self._transaction() as session:
            return session.scalar(select(func.count()).select_from(ApiKeyRow)) != 0

    def add_key(self, key: str) -> None:
        """Accept a key from now on; only its hash is kept."""
        with self._transaction() as session:
            session.add(ApiKeyRow(sha256=_sha256(key), created_at=datetime.now(UTC)))

    def knows_key(self, key: str) -> bool:
        """Whether the key is valid. Looking its hash up tells an attacker nothing about the key."""
        with self._transaction() as session:
            return session.get(ApiKeyRow, _sha256(key)) is not None

    # --- jobs and sweeps

    def create(
        self,
        resource: type[AnyRun],
        spec: JobSpec | SweepSpec,
        runs_url: str,
        idempotency_key: str | None = None,
    ) -> tuple[AnyRun, bool]:
        """Accept a job or a sweep.

        Args:
            resource: `Job` or `Sweep`.
            spec: what is asked, of the same kind.
            runs_url: root of the run directories.
            idempotency_key: the same key with the same spec gives the same one again.

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

    # --- events

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
                last = session.scalar(select(func.max(EventRow.sequence)).where(EventRow.job_id == run_id)) or 0
                row = session.get_one(JobRow, run_id)
                progress = dict(row.progress)
                for sequence, item in enumerate(events, last + 1):
                    step = item.data.get("step") if item.type == "train.step" else None
                    document = item.model_dump(mode="json")
                    session.add(EventRow(job_id=run_id, sequence=sequence, type=item.type, step=step, event=document))
                    progress = fold_progress(progress, item)
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
        return [_event(row) for row in rows[:limit]], len(rows) > limit

    def find_verdict(self, run_id: str, attempt: int) -> JobEvent | None:
        """An attempt's own last word, `job.finished` or `job.failed`; None when it said neither."""
        query = (
            select(EventRow)
            .where(EventRow.job_id == run_id, EventRow.type.in_(("job.finished", "job.failed")))
            .order_by(EventRow.sequence.desc())
        )
        with self._transaction() as session:
            verdicts = [_event(row) for row in session.scalars(query)]
        return next((event for event in verdicts if event.attempt == attempt), None)

    def list_metrics(self, run_id: str, *, after: int = 0, limit: int = 1000) -> tuple[list[StepMetrics], bool]:
        """Metrics of the steps above `after`, in order; of a step taken twice the last word."""
        self.get(Job, run_id)
        latest = (
            select(EventRow.step, func.max(EventRow.sequence).label("sequence"))
            .where(EventRow.job_id == run_id, EventRow.step > after)
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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _event(row: EventRow) -> JobEvent:
    return JobEvent.model_validate({**row.event, "sequence": row.sequence})


def _run(row: JobRow, queue_position: int | None) -> Job | Sweep:
    run = _RESOURCES[cast("RunKind", row.kind)].model_validate(row, from_attributes=True)
    return run.model_copy(update={"queue_position": queue_position})
