"""Jobs that came by the OpenAI-compatible API, with the request that each came by.

OpenAI's client repeats a create whose answer was lost, and sends no idempotency key; it does say which repetition a
request is. So each create takes a key of our own: the caller's key, the body's hash, and a number that rises with each
create of this body. A first try takes a new number, a repetition the last one. When the first try has been lost on its
way, or is still at work in another replica, the repetition and it want the same number, and one of them makes the job
for both. A caller that sends a key is taken by that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.errors import NotFoundError
from service.openai_api.forms import FineTuningRequest
from service.spec.job import JobSpec
from service.spec.resources import Job, JobEvent, JobStatus
from service.store.events import EventTables, read_event
from service.store.idempotency import used_otherwise
from service.store.models import EventRow, FineTuningRow, IdempotencyRow, table_of
from service.store.run_rows import RUNS, read_run

REPETITION_WITHIN = timedelta(minutes=15)
"""OpenAI's client gives up after 10 minutes a try."""


class FineTuning(NamedTuple):
    """A job that came by this API.

    Attributes:
        job: as it stands.
        request: that it came by.
        is_paused: whether it was stopped to be resumed; it is being cancelled then, or is.
    """

    job: Job
    request: FineTuningRequest
    is_paused: bool


class FineTuningTables(EventTables):
    """Fine-tuning jobs in OpenAI's sense."""

    def create_fine_tuning(
        self,
        request: FineTuningRequest,
        make_spec: Callable[[], JobSpec],
        runs_url: str,
        *,
        is_repeated: bool,
        idempotency_key: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job, once for a request and its repetitions.

        Args:
            request: as sent.
            make_spec: the job's spec; called when there is a job to make.
            runs_url: root of the run directories.
            is_repeated: whether the client says that it sends the request again.
            idempotency_key: the same key with the same request gives the same job again.

        Returns:
            The job, and whether it is new.

        Raises:
            ConflictError: the key was used with another request.
        """

        def keep_request(session: Session, job_id: str) -> None:
            session.add(FineTuningRow(job_id=job_id, request=request.model_dump(mode="json"), is_paused=False))

        if idempotency_key is not None:
            job = self._job_of_key(idempotency_key, request)
            if job is not None:
                return job, False
            return self.create(Job, make_spec(), runs_url, idempotency_key, beside=keep_request)
        key_id = self._principal.key_id if self._principal else ""
        prefix = f"openai-{key_id}-{request.sha256()}-"
        number = self._count_keys(prefix)
        if is_repeated and number and (job := self._recent_job(f"{prefix}{number}")) is not None:
            return job, False
        spec = make_spec()
        while True:
            number += 1
            job, is_new = self.create(Job, spec, runs_url, f"{prefix}{number}", beside=keep_request)
            if is_new or is_repeated:
                return job, is_new

    def _job_of_key(self, idempotency_key: str, request: FineTuningRequest) -> Job | None:
        """The job that a request made; its spec may follow from the request otherwise by now."""
        with self._transaction() as session:
            used = session.get(IdempotencyRow, (self._project, idempotency_key))
            row = None if used is None else session.get(FineTuningRow, used.made_id)
        if used is None:
            return None
        if row is None or FineTuningRequest.model_validate(row.request) != request:
            raise used_otherwise()
        return self.get(Job, used.made_id)

    def _count_keys(self, prefix: str) -> int:
        query = select(func.count()).select_from(IdempotencyRow).where(IdempotencyRow.project_id == self._project)
        with self._transaction() as session:
            return session.scalar(query.where(IdempotencyRow.key.startswith(prefix, autoescape=True))) or 0

    def _recent_job(self, key: str) -> Job | None:
        with self._transaction() as session:
            used = session.get(IdempotencyRow, (self._project, key))
        if used is None:
            return None
        job = self.get(Job, used.made_id)
        return job if datetime.now(UTC) - job.created_at < REPETITION_WITHIN else None

    def get_fine_tuning(self, job_id: str) -> FineTuning:
        """A job.

        Raises:
            NotFoundError: the project has no such job, or it came by another way.
        """
        job = self.get(Job, job_id)
        with self._transaction() as session:
            row = session.get(FineTuningRow, job_id)
        if row is None:
            raise NotFoundError(f"job {job_id!r} did not come by this API; look at /v1/jobs/{job_id}")
        return FineTuning(job, FineTuningRequest.model_validate(row.request), row.is_paused)

    def mark_paused(self, job_id: str, *, is_paused: bool) -> None:
        """Note whether a job that is cancelled is so to be resumed."""
        with self._transaction() as session:
            session.execute(update(FineTuningRow).where(FineTuningRow.job_id == job_id).values(is_paused=is_paused))

    def list_fine_tuning(
        self,
        *,
        statuses: Collection[JobStatus] = (),
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[list[FineTuning], bool]:
        """Jobs, newest first, from the one after `after` on; and whether there are more.

        Args:
            statuses: only jobs in one of them; empty takes all.
            metadata: only jobs that have all of it.
            after: id of the last job of the page before.
            limit: jobs at most.

        Raises:
            NotFoundError: `after` is none.
        """
        asked = table_of(FineTuningRow).c
        query = self._own_runs().join(FineTuningRow, asked.job_id == RUNS.id)
        query = query.add_columns(asked.request, asked.is_paused)
        if statuses:
            query = query.where(RUNS.status.in_(statuses))
        for name, value in (metadata or {}).items():
            query = query.where(asked.request["metadata"][name].as_string() == value)
        if after is not None:
            last = self.get(Job, after)
            is_older, is_tied = RUNS.created_at < last.created_at, RUNS.created_at == last.created_at
            query = query.where(is_older | (is_tied & (RUNS.id < last.id)))
        query = query.order_by(RUNS.created_at.desc(), RUNS.id.desc()).limit(limit + 1)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        found = [
            FineTuning(cast("Job", read_run(run)), FineTuningRequest.model_validate(request), is_paused)
            for *run, request, is_paused in rows
        ]
        return found[:limit], len(found) > limit

    def latest_events(self, job_id: str, *, before: int | None, limit: int) -> tuple[list[JobEvent], bool]:
        """A job's events, newest first, with sequences below `before`; and whether there are more."""
        query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.sequence.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(EventRow.sequence < before)
        with self._transaction() as session:
            rows = session.scalars(query).all()
        return [read_event(row) for row in rows[:limit]], len(rows) > limit

    def step_events(self, job_id: str, steps: list[int]) -> dict[int, JobEvent]:
        """The last event of each of some steps, by step."""
        is_one = (EventRow.job_id == job_id) & EventRow.step.in_(steps)
        with self._transaction() as session:
            rows = session.scalars(select(EventRow).where(is_one).order_by(EventRow.sequence)).all()
        return {row.step: read_event(row) for row in rows if row.step is not None}

    def count_trained_tokens(self, job_id: str) -> int:
        """Targets of the loss in all steps so far; of a step taken twice both times, for both were computed."""
        tokens = EventRow.event["data"]["trained_tokens"].as_integer()
        is_step = (EventRow.job_id == job_id) & (EventRow.type == "train.step")
        with self._transaction() as session:
            return session.scalar(select(func.sum(tokens)).where(is_step)) or 0
