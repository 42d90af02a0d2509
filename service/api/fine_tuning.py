"""`/v1/fine_tuning/jobs`, in OpenAI's form: create, list, look at, cancel; events and checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from service.api.access import KeyedRoute, Member, Viewer
from service.api.dependencies import ControlPlane, Parts
from service.api.lifecycle import resume
from service.api.openai_errors import OPENAI_PROBLEMS, openai_not_found
from service.api.reachable import require_possible
from service.api.runs import IdempotencyKey
from service.errors import ConflictError, InvalidSpecError, NotFoundError, NotReadyError, SleddogError
from service.openai_api.answers import (
    checkpoint_id,
    event_sequence,
    fine_tuned_name,
    openai_checkpoint,
    openai_event,
    openai_job,
)
from service.openai_api.forms import FineTuningRequest, OpenAICheckpoint, OpenAIEvent, OpenAIJob, OpenAIList
from service.openai_api.models import find_model, model_document
from service.openai_api.request import job_spec, request_field
from service.spec.job import JobSpec
from service.spec.resources import Job, JobEvent
from service.store.fine_tuning import FineTuning
from service.store.principal import Principal
from service.store.store import Store

_NOT_FOUND = openai_not_found("job")

JobLimit = Annotated[int, Query(ge=1, le=100, description="Items at most")]
After = Annotated[str | None, Query(description="Id of the last item of the page before")]
RetryCount = Annotated[
    int,
    Header(alias="x-stainless-retry-count", ge=0, description="Sent by OpenAI's client: 1 for the first repetition"),
]

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], responses=OPENAI_PROBLEMS, route_class=KeyedRoute)


@router.post("", responses=openai_not_found("model"))
def create_fine_tuning_job(
    request: FineTuningRequest,
    who: Member,
    parts: Parts,
    retry_count: RetryCount = 0,
    idempotency_key: IdempotencyKey = None,
) -> OpenAIJob:
    """Start a job. A request that the client repeats, for want of an answer, makes no second one."""
    store = parts.store.of(who)
    try:
        job, _ = store.create_fine_tuning(
            request,
            lambda: _spec(request, parts, who),
            parts.runs_url,
            is_repeated=retry_count > 0,
            idempotency_key=idempotency_key,
        )
    except ConflictError:  # its field is a header, not one of the spec
        raise
    except SleddogError as error:
        if error.field is None:
            raise
        raise type(error)(error.message, request_field(error.field, request)) from None
    parts.reconciler.wake()
    return _answer(store, FineTuning(job, request, is_paused=False), who)


def _spec(request: FineTuningRequest, parts: ControlPlane, who: Principal) -> JobSpec:
    store = parts.store.of(who)
    model = model_document(find_model(store, who.project, request.model))
    num_bytes = 0
    for param, file_id in (("training_file", request.training_file), ("validation_file", request.validation_file)):
        dataset = store.find_dataset(file_id) if file_id is not None else None
        if file_id is not None and dataset is None:
            raise InvalidSpecError(f"there is no file {file_id!r}", param)
        if param == "training_file" and dataset is not None:
            num_bytes = dataset.decompressed_bytes or dataset.num_bytes
    spec = job_spec(request, model, num_bytes)
    require_possible(spec, parts.backend, parts.uri_policy)
    return spec


@router.get("", responses=_NOT_FOUND)
def list_fine_tuning_jobs(
    request: Request, who: Viewer, parts: Parts, after: After = None, limit: JobLimit = 20
) -> OpenAIList[OpenAIJob]:
    """List jobs that came by this API, newest first; `metadata[key]=value` takes those that have it."""
    metadata = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    store = parts.store.of(who)
    found, has_more = store.list_fine_tuning(metadata=metadata, after=after, limit=limit)
    return OpenAIList(data=[_answer(store, asked, who) for asked in found], has_more=has_more)


@router.get("/{job_id}", responses=_NOT_FOUND)
def get_fine_tuning_job(job_id: str, who: Viewer, parts: Parts) -> OpenAIJob:
    """How a job stands."""
    store = parts.store.of(who)
    return _answer(store, store.get_fine_tuning(job_id), who)


@router.post("/{job_id}/cancel", responses=_NOT_FOUND)
def cancel_fine_tuning_job(job_id: str, who: Member, parts: Parts) -> OpenAIJob:
    """Cancel a job; cancelling twice is no error."""
    return _stop(job_id, parts, who, is_paused=False)


@router.post("/{job_id}/pause", responses=_NOT_FOUND)
def pause_fine_tuning_job(job_id: str, who: Member, parts: Parts) -> OpenAIJob:
    """Stop a job, to be resumed from its newest checkpoint; pausing twice is no error."""
    found = parts.store.of(who).get_fine_tuning(job_id)
    if found.job.status in ("cancelling", "cancelled") and not found.is_paused:
        raise ConflictError("the job was cancelled; there is nothing to pause")
    return _stop(job_id, parts, who, is_paused=True)


@router.post("/{job_id}/resume", responses=_NOT_FOUND)
def resume_fine_tuning_job(job_id: str, who: Member, parts: Parts) -> OpenAIJob:
    """Go on with a paused, cancelled or failed job, from its newest checkpoint; resuming twice is no error."""
    store = parts.store.of(who)
    if store.get_fine_tuning(job_id).job.status == "cancelling":
        raise NotReadyError(f"job {job_id} is still being stopped; resume it in a moment")
    resume(store, Job, job_id)
    store.mark_paused(job_id, is_paused=False)
    parts.reconciler.wake()
    return _answer(store, store.get_fine_tuning(job_id), who)


def _stop(job_id: str, parts: ControlPlane, who: Principal, *, is_paused: bool) -> OpenAIJob:
    store = parts.store.of(who)
    store.get_fine_tuning(job_id)
    store.request_cancel(Job, job_id)
    store.mark_paused(job_id, is_paused=is_paused)
    parts.reconciler.wake()
    return _answer(store, store.get_fine_tuning(job_id), who)


@router.get("/{job_id}/events", responses=_NOT_FOUND)
def list_fine_tuning_events(
    job_id: str, who: Viewer, parts: Parts, after: After = None, limit: JobLimit = 20
) -> OpenAIList[OpenAIEvent]:
    """What happened in a job, newest first; `after` goes on with what was before."""
    store = parts.store.of(who)
    store.get_fine_tuning(job_id)
    before = None if after is None else event_sequence(after, job_id)
    if after is not None and before is None:
        raise NotFoundError(f"job {job_id} has no event {after!r}", "after")
    events, has_more = store.latest_events(job_id, before=before, limit=limit)
    return OpenAIList(data=[openai_event(job_id, event) for event in events], has_more=has_more)


@router.get("/{job_id}/checkpoints", responses=_NOT_FOUND)
def list_fine_tuning_checkpoints(
    job_id: str, who: Viewer, parts: Parts, after: After = None, limit: JobLimit = 10
) -> OpenAIList[OpenAICheckpoint]:
    """The checkpoints that a job has written, newest first; its newest `train.keep_checkpoints` are kept."""
    store = parts.store.of(who)
    job, request, _ = store.get_fine_tuning(job_id)
    saved = {_step(event): event for event in store.events_of_types(job_id, ["checkpoint.saved"])}
    steps = sorted(saved, reverse=True)
    if after is not None:
        places = {checkpoint_id(job_id, step): place for place, step in enumerate(steps, 1)}
        if after not in places:
            raise NotFoundError(f"job {job_id} has no checkpoint {after!r}", "after")
        steps = steps[places[after] :]
    taken = store.step_events(job_id, steps[:limit])
    measured = {_step(event): event for event in store.events_of_types(job_id, ["eval.held_out"])}
    model = fine_tuned_name(job, request, who.project)
    data = [
        openai_checkpoint(model, job_id, saved[step], taken.get(step), measured.get(step)) for step in steps[:limit]
    ]
    return OpenAIList(data=data, has_more=len(steps) > limit)


def _step(event: JobEvent) -> int:
    return int(event.data["step"])  # type: ignore[arg-type]


def _answer(store: Store, found: FineTuning, who: Principal) -> OpenAIJob:
    job, request, is_paused = found
    trained = store.count_trained_tokens(job.id) if job.status == "succeeded" else None
    return openai_job(job, request, is_paused=is_paused, project=who.project, trained_tokens=trained)
