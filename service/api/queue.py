"""`/v1/queue`, and approvals: what waits, why, and who lets it."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.access import Admin, KeyedRoute, Viewer
from service.api.dependencies import Parts
from service.api.runs import CONFLICT, PROBLEMS, not_found
from service.spec.queue import Queue, QueueEntry
from service.spec.resources import ACTIVE_STATUSES, Job, Sweep

router = APIRouter(prefix="/v1", tags=["queue"], responses=PROBLEMS, route_class=KeyedRoute)


@router.get("/queue")
def get_queue(who: Viewer, parts: Parts) -> Queue:
    """What runs and what waits of the project, in the order in which it starts; positions count all projects."""
    runs = parts.store.of(who).unfinished()
    entries = [QueueEntry.model_validate({**run.model_dump(), "kind": run.kind}) for run in runs]
    waiting = [entry for entry in entries if entry.status not in ACTIVE_STATUSES]
    waiting.sort(key=lambda entry: (entry.queue_position is None, entry.queue_position or 0))
    return Queue(
        running=[entry for entry in entries if entry.status in ACTIVE_STATUSES],
        waiting=waiting,
        quotas=parts.store.get_project(who.project).quotas,
    )


@router.post("/jobs/{job_id}/approve", responses=not_found("job") | CONFLICT)
def approve_job(job_id: str, who: Admin, parts: Parts) -> Job:
    """Let a job into the queue whose plan is above the project's limit. Approving twice is no error."""
    job = parts.store.of(who).approve(Job, job_id)
    parts.reconciler.wake()
    return job


@router.post("/sweeps/{sweep_id}/approve", responses=not_found("sweep") | CONFLICT)
def approve_sweep(sweep_id: str, who: Admin, parts: Parts) -> Sweep:
    """Let a sweep into the queue whose plan is above the project's limit. Approving twice is no error."""
    sweep = parts.store.of(who).approve(Sweep, sweep_id)
    parts.reconciler.wake()
    return sweep
