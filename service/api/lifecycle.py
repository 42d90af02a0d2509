"""What becomes of a run that has ended: delete, retry, resume."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from fastapi.concurrency import run_in_threadpool

from service.api.access import KeyedRoute, Member
from service.api.dependencies import Parts
from service.api.runs import CONFLICT, PROBLEMS, IdempotencyKey, accept, made_before, not_found
from service.reproduction import require_taken, todays_spec
from service.run_files import remove_run
from service.spec.resources import Job, Run, Sweep
from service.store.runs import AnyRun
from service.store.store import Store

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=KeyedRoute)

Purge = Annotated[bool, Query(description="Also delete the run directory: checkpoints, export, reports")]


@router.delete(
    "/jobs/{job_id}", tags=["jobs"], status_code=status.HTTP_204_NO_CONTENT, responses=not_found("job") | CONFLICT
)
def delete_job(job_id: str, who: Member, parts: Parts, purge: Purge = False) -> None:
    """Forget a job that has ended; prepared data, which others may share, stays in any case."""
    _delete(Job, job_id, parts.store.of(who), purge=purge)


@router.delete(
    "/sweeps/{sweep_id}",
    tags=["sweeps"],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=not_found("sweep") | CONFLICT,
)
def delete_sweep(sweep_id: str, who: Member, parts: Parts, purge: Purge = False) -> None:
    """Forget a sweep that has ended."""
    _delete(Sweep, sweep_id, parts.store.of(who), purge=purge)


@router.post(
    "/jobs/{job_id}/retry",
    tags=["jobs"],
    status_code=status.HTTP_201_CREATED,
    responses=not_found("job") | CONFLICT | made_before(Job),
)
async def retry_job(
    job_id: str, who: Member, parts: Parts, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """A new job of the same spec, from the beginning; its `retry_of` names this one, which must have ended."""
    job = await run_in_threadpool(parts.store.of(who).require_ended, Job, job_id)
    return await accept(
        Job,
        todays_spec(job),
        parts,
        who,
        response=response,
        idempotency_key=idempotency_key,
        retry_of=job_id,
        priority=job.priority,
    )


@router.post("/jobs/{job_id}/resume", tags=["jobs"], responses=not_found("job") | CONFLICT)
def resume_job(job_id: str, who: Member, parts: Parts) -> Job:
    """Go on with a cancelled or failed job, from its last checkpoint. Resuming twice is no error."""
    job = resume(parts.store.of(who), Job, job_id)
    parts.reconciler.wake()
    return job


@router.post("/sweeps/{sweep_id}/resume", tags=["sweeps"], responses=not_found("sweep") | CONFLICT)
def resume_sweep(sweep_id: str, who: Member, parts: Parts) -> Sweep:
    """Go on with a cancelled or failed sweep; finished trials stay. Resuming twice is no error."""
    sweep = resume(parts.store.of(who), Sweep, sweep_id)
    parts.reconciler.wake()
    return sweep


def resume(store: Store, resource: type[AnyRun], run_id: str) -> AnyRun:
    """Queue a run again, if a driver of this version will take its spec.

    Raises:
        OutdatedSpecError: it will not.
    """
    run = store.get(resource, run_id)
    if run.status in ("failed", "cancelled"):
        require_taken(run)
    return store.request_resume(resource, run_id)


def _delete(resource: type[Run], run_id: str, store: Store, *, purge: bool) -> None:
    run = store.require_ended(resource, run_id)
    if purge:  # first: what is left of a run that is no longer known could not be found again
        remove_run(run.run_url)
    store.delete(resource, run_id)
