"""`client.jobs`, and the handle on one job that `create` and `get` give.

    job = client.jobs.create(load_spec("job.yaml"))
    for event in job.stream_events():
        print(event.type, event.message)
    print(job.report()["held_out"])

A handle's fields say how the job stood when it was asked for; its methods ask anew.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import PrivateAttr

from service.client import calls
from service.client.runs import PAGE, AsyncRuns, AsyncSender, Runs, Sender
from service.spec.frames import Curves, Metrics
from service.spec.job import JobSpec
from service.spec.outcomes import Artifact, Checkpoint, Evaluation, JobDiff, Reproduction, Validation
from service.spec.plan import Plan, PlanRequest
from service.spec.promotion import Promotion
from service.spec.resources import Job, JobEvent


class Jobs(Runs[Job]):
    """`client.jobs`."""

    def __init__(self, client: Sender) -> None:
        super().__init__(client, calls.JOBS)

    def create(self, spec: JobSpec, *, priority: int = 0, idempotency_key: str | None = None) -> JobHandle:
        """Post a job; safe to repeat with the same key. A higher priority goes first."""
        return JobHandle.bind(self._client.send(self._calls.create(spec, idempotency_key, priority)), self)

    def get(self, run_id: str) -> JobHandle:
        """How a job stands."""
        return JobHandle.bind(super().get(run_id), self)

    def create_from(self, promotion: Promotion, *, idempotency_key: str | None = None) -> JobHandle:
        """Post the job of a sweep's candidate, such as `sweep.best()`."""
        return self.create(promotion.job, idempotency_key=idempotency_key)

    def plan(self, request: PlanRequest) -> Plan:
        """What a job would need and take; nothing is started."""
        return self._client.send(calls.plan_job(request))

    def metrics(self, job_id: str, *, from_step: int | None = None, to_step: int | None = None) -> Metrics:
        """Metrics of all steps so far, or of those from the one to the other."""
        metrics, steps = Metrics(), (from_step, to_step)
        while True:
            after = metrics[-1].step if metrics else 0
            page = self._client.send(calls.list_metrics(job_id, after, PAGE, steps))
            metrics += page.data
            if not page.has_more:
                return metrics

    def curves(
        self,
        job_id: str,
        names: builtins.list[str] | None = None,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int = 500,
    ) -> Curves:
        """Curves, of at most so many points each that look the same.

        Args:
            job_id: of the job.
            names: only these metrics, or what lies below them, such as `loss_by_category`.
            from_step: first step.
            to_step: last step.
            max_points: of each curve.
        """
        curves = self._client.send(calls.list_series(job_id, names, max_points, (from_step, to_step)))
        return Curves(curves)

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> JobHandle:
        """Post a job again that has ended: a new one of the same spec."""
        return JobHandle.bind(self._client.send(calls.retry_job(job_id, idempotency_key)), self)

    def validate(self, spec: JobSpec) -> Validation:
        """What posting a job would be answered; nothing is stored.

        Raises:
            InvalidSpecError: it would be refused; likewise SourceNotFoundError.
        """
        return self._client.send(calls.validate_job(spec))

    def checkpoints(self, job_id: str) -> builtins.list[Checkpoint]:
        """Whole training checkpoints, the one with the most steps first."""
        return self._client.send(calls.list_checkpoints(job_id))

    def evaluations(self, job_id: str) -> builtins.list[Evaluation]:
        """Held-out losses, benchmarks and samples so far, by time."""
        return self._client.send(calls.list_evaluations(job_id))

    def diff(self, job_id: str, other_id: str) -> JobDiff:
        """How another job differs: spec, data, results."""
        return self._client.send(calls.diff_jobs(job_id, other_id))

    def reproduce(self, job_id: str) -> Reproduction:
        """The job that does again what a job did, held to the same data; nothing is started."""
        return self._client.send(calls.reproduce_job(job_id))

    def report(self, job_id: str) -> dict[str, Any]:
        """What a finished job did."""
        return self._client.send(calls.get_report(job_id))


class JobHandle(Job):
    """A job as it stood when it was asked for, and a hold on it."""

    _jobs: Jobs = PrivateAttr()

    @classmethod
    def bind(cls, job: Job, jobs: Jobs) -> Self:
        """A handle on a job."""
        handle = cls.model_construct(**dict(job))
        handle._jobs = jobs  # noqa: SLF001  the class's own
        return handle

    def refresh(self) -> JobHandle:
        """How it stands now."""
        return self._jobs.get(self.id)

    def wait(self, *, timeout_s: float | None = None) -> Job:
        """As `Jobs.wait`."""
        return self._jobs.wait(self.id, timeout_s=timeout_s)

    def watch(self) -> Iterator[Job]:
        """As `Jobs.watch`."""
        return self._jobs.watch(self.id)

    def cancel(self) -> Job:
        """Cancel it."""
        return self._jobs.cancel(self.id)

    def update(self, *, priority: int) -> Job:
        """As `Jobs.update`."""
        return self._jobs.update(self.id, priority=priority)

    def resume(self) -> Job:
        """As `Jobs.resume`."""
        return self._jobs.resume(self.id)

    def retry(self) -> JobHandle:
        """As `Jobs.retry`."""
        return self._jobs.retry(self.id)

    def delete(self, *, purge: bool = False) -> None:
        """As `Jobs.delete`."""
        self._jobs.delete(self.id, purge=purge)

    def stream_events(self, *, after: int = 0) -> Iterator[JobEvent]:
        """As `Jobs.stream_events`."""
        return self._jobs.stream_events(self.id, after=after)

    def metrics(self, *, from_step: int | None = None, to_step: int | None = None) -> Metrics:
        """As `Jobs.metrics`."""
        return self._jobs.metrics(self.id, from_step=from_step, to_step=to_step)

    def curves(self, names: list[str] | None = None, *, max_points: int = 500) -> Curves:
        """As `Jobs.curves`."""
        return self._jobs.curves(self.id, names, max_points=max_points)

    def logs(self, *, tail: int | None = None) -> str:
        """As `Jobs.logs`."""
        return self._jobs.logs(self.id, tail=tail)

    def stream_logs(self, *, tail: int | None = None) -> Iterator[str]:
        """As `Jobs.stream_logs`."""
        return self._jobs.stream_logs(self.id, tail=tail)

    def checkpoints(self) -> list[Checkpoint]:
        """As `Jobs.checkpoints`."""
        return self._jobs.checkpoints(self.id)

    def evaluations(self) -> list[Evaluation]:
        """As `Jobs.evaluations`."""
        return self._jobs.evaluations(self.id)

    def artifacts(self) -> Iterator[Artifact]:
        """As `Jobs.artifacts`."""
        return self._jobs.artifacts(self.id)

    def download(self, path: str, target: Path) -> Path:
        """As `Jobs.download`."""
        return self._jobs.download(self.id, path, target)

    def reproduce(self) -> Reproduction:
        """As `Jobs.reproduce`."""
        return self._jobs.reproduce(self.id)

    def report(self) -> dict[str, Any]:
        """As `Jobs.report`."""
        return self._jobs.report(self.id)


class AsyncJobs(AsyncRuns[Job]):
    """`async_client.jobs`: as `Jobs`, awaited."""

    def __init__(self, client: AsyncSender) -> None:
        super().__init__(client, calls.JOBS)

    async def create(self, spec: JobSpec, *, priority: int = 0, idempotency_key: str | None = None) -> Job:
        """As `Jobs.create`."""
        return await self._client.send(self._calls.create(spec, idempotency_key, priority))

    async def create_from(self, promotion: Promotion, *, idempotency_key: str | None = None) -> Job:
        """As `Jobs.create_from`."""
        return await self.create(promotion.job, idempotency_key=idempotency_key)

    async def plan(self, request: PlanRequest) -> Plan:
        """As `Jobs.plan`."""
        return await self._client.send(calls.plan_job(request))

    async def metrics(self, job_id: str, *, from_step: int | None = None, to_step: int | None = None) -> Metrics:
        """As `Jobs.metrics`."""
        metrics, steps = Metrics(), (from_step, to_step)
        while True:
            after = metrics[-1].step if metrics else 0
            page = await self._client.send(calls.list_metrics(job_id, after, PAGE, steps))
            metrics += page.data
            if not page.has_more:
                return metrics

    async def curves(
        self,
        job_id: str,
        names: builtins.list[str] | None = None,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int = 500,
    ) -> Curves:
        """As `Jobs.curves`."""
        curves = await self._client.send(calls.list_series(job_id, names, max_points, (from_step, to_step)))
        return Curves(curves)

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """As `Jobs.retry`."""
        return await self._client.send(calls.retry_job(job_id, idempotency_key))

    async def validate(self, spec: JobSpec) -> Validation:
        """As `Jobs.validate`."""
        return await self._client.send(calls.validate_job(spec))

    async def checkpoints(self, job_id: str) -> builtins.list[Checkpoint]:
        """As `Jobs.checkpoints`."""
        return await self._client.send(calls.list_checkpoints(job_id))

    async def evaluations(self, job_id: str) -> builtins.list[Evaluation]:
        """As `Jobs.evaluations`."""
        return await self._client.send(calls.list_evaluations(job_id))

    async def diff(self, job_id: str, other_id: str) -> JobDiff:
        """As `Jobs.diff`."""
        return await self._client.send(calls.diff_jobs(job_id, other_id))

    async def reproduce(self, job_id: str) -> Reproduction:
        """As `Jobs.reproduce`."""
        return await self._client.send(calls.reproduce_job(job_id))

    async def report(self, job_id: str) -> dict[str, Any]:
        """As `Jobs.report`."""
        return await self._client.send(calls.get_report(job_id))
