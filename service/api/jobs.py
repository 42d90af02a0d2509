"""`/v1/jobs`: plan, create, list, look at, change, cancel."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response, status

from service.api.access import Member, Viewer
from service.api.conditional import PRECONDITION, ConditionalRoute, IfMatch
from service.api.dependencies import Parts, read_soon
from service.api.runs import (
    CONFLICT,
    PROBLEMS,
    AfterEvent,
    AfterId,
    Filter,
    IdempotencyKey,
    Limit,
    Priority,
    accept,
    change,
    made_before,
    not_found,
)
from service.errors import InvalidSpecError, NotFoundError
from service.plan.plan import plan_job
from service.run_reader import read_report
from service.spec.job import JobSpec
from service.spec.plan import Plan, PlanRequest
from service.spec.resources import Job, JobEvent, Page, RunUpdate

_NOT_FOUND = not_found("job")

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS, route_class=ConditionalRoute)


@router.post("", status_code=status.HTTP_201_CREATED, responses=CONFLICT | made_before(Job))
async def create_job(
    spec: JobSpec,
    who: Member,
    parts: Parts,
    response: Response,
    *,
    priority: Priority = 0,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Accept a job. It is stored before this answers, and will run whatever happens to the service."""
    return await accept(Job, spec, parts, who, response=response, idempotency_key=idempotency_key, priority=priority)


@router.post(":plan")
def plan(request: PlanRequest, _who: Viewer) -> Plan:
    """What a job would need and take: memory, communication, time, cost. Starts nothing and reads no data."""
    try:
        return plan_job(request)
    except InvalidSpecError as error:
        raise InvalidSpecError(error.message, f"job.{error.field}") from error


@router.get("", responses=_NOT_FOUND)
def list_jobs(
    who: Viewer,
    parts: Parts,
    only: Filter,
    after: AfterId = None,
    limit: Limit = 50,
) -> Page[Job]:
    """List jobs, newest first."""
    jobs, has_more = parts.store.of(who).list_runs(Job, only=only, after=after, limit=limit)
    return Page(data=jobs, has_more=has_more)


@router.get("/{job_id}", responses=_NOT_FOUND)
async def get_job(job_id: str, who: Viewer, parts: Parts) -> Job:
    """How a job stands."""
    return await read_soon(parts, lambda: parts.store.of(who).get(Job, job_id))


@router.patch("/{job_id}", responses=_NOT_FOUND | CONFLICT | PRECONDITION)
async def update_job(
    job_id: str, update: RunUpdate, who: Member, parts: Parts, *, request: Request, if_match: IfMatch = None
) -> Job:
    """Change the priority of a job that waits."""
    return await change(Job, job_id, update, parts, who, request=request, if_match=if_match, router=router)


@router.post("/{job_id}/cancel", responses=_NOT_FOUND | CONFLICT)
def cancel_job(job_id: str, who: Member, parts: Parts) -> Job:
    """Cancel a job; its processes end within seconds. Cancelling twice is no error."""
    job = parts.store.of(who).request_cancel(Job, job_id)
    parts.reconciler.wake()
    return job


@router.get("/{job_id}/events", responses=_NOT_FOUND)
def list_events(
    job_id: str,
    who: Viewer,
    parts: Parts,
    after: AfterEvent = 0,
    limit: Limit = 1000,
) -> Page[JobEvent]:
    """What happened in a job, in order."""
    events, has_more = parts.store.of(who).list_events(Job, job_id, after=after, limit=limit)
    return Page(data=events, has_more=has_more)


@router.get("/{job_id}/report", responses=_NOT_FOUND)
def get_report(job_id: str, who: Viewer, parts: Parts) -> dict[str, Any]:
    """What a finished job did: data, training, evaluations, export."""
    job = parts.store.of(who).get(Job, job_id)
    report = read_report(job.run_url)
    if report is None:
        raise NotFoundError(f"job {job_id} is {job.status}; a report is there once it has succeeded")
    return report
