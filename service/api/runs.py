"""What the routes of jobs and sweeps have in common."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from pydantic import AwareDatetime, BaseModel

from service.api.conditional import require_match
from service.api.dependencies import ControlPlane
from service.api.reachable import require_possible
from service.spec.job import JobSpec
from service.spec.resources import MAX_PRIORITY, MIN_PRIORITY, JobStatus, Problem, RunUpdate
from service.spec.run_filter import RunFilter
from service.spec.sweep import SweepSpec
from service.store.principal import Principal
from service.store.runs import AnyRun

Made = TypeVar("Made")

Answers = dict[int | str, dict[str, Any]]

PROBLEMS: Answers = {
    400: {"model": Problem, "description": "The body is no text of the encoding that it says"},
    401: {"model": Problem, "description": "No API key, or a wrong one"},
    403: {"model": Problem, "description": "The user's role or the key's scopes do not suffice"},
    413: {"model": Problem, "description": "The body is larger than the service takes"},
    429: {"model": Problem, "description": "The key asks too often; `Retry-After` says when to come again"},
    422: {"model": Problem, "description": "A value is not valid; `errors` names its path"},
}
CONFLICT: Answers = {409: {"model": Problem, "description": "The request contradicts the state"}}
UNAVAILABLE: Answers = {503: {"model": Problem, "description": "Ray does not answer"}}

Limit = Annotated[int, Query(ge=1, le=1000, description="Items at most")]
AfterId = Annotated[str | None, Query(description="Id of the last item of the page before")]


def run_filter(
    status: Annotated[list[JobStatus] | None, Query(description="Only these")] = None,
    name: Annotated[
        str | None, Query(min_length=1, max_length=64, description="Only those with this in their name")
    ] = None,
    created_after: Annotated[AwareDatetime | None, Query(description="Only those created then or later")] = None,
    created_before: Annotated[AwareDatetime | None, Query(description="Only those created earlier")] = None,
) -> RunFilter:
    """What a list of jobs or of sweeps is to hold."""
    return RunFilter(tuple(status or ()), name, created_after, created_before)


Filter = Annotated[RunFilter, Depends(run_filter)]
Priority = Annotated[
    int,
    Query(
        ge=MIN_PRIORITY,
        le=MAX_PRIORITY,
        description="Higher goes first, and may make lower ones give way. Beside the spec, which says what is trained",
    ),
]
AfterEvent = Annotated[int, Query(ge=0, lt=2**31, description="Sequence of the last event already seen")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key with the same body gives the same answer again"),
]


def not_found(what: str) -> Answers:
    """For a route that names a `what`."""
    return {404: {"model": Problem, "description": f"There is no such {what}"}}


def made_before(model: type[BaseModel]) -> Answers:
    """For a route that makes a thing once, however often it is asked to."""
    return {200: {"model": model, "description": "A repeated request: what the first one made"}}


async def accept(
    resource: type[AnyRun],
    spec: JobSpec | SweepSpec,
    parts: ControlPlane,
    who: Principal,
    *,
    response: Response,
    idempotency_key: str | None,
    retry_of: str | None = None,
    priority: int = 0,
) -> AnyRun:
    """Store a job or a sweep, once for each key, and see that it is run."""
    run, is_new = await run_in_threadpool(
        _accept, resource, spec, parts, who, idempotency_key, retry_of=retry_of, priority=priority
    )
    return created(run, f"/v1/{run.kind}s/{run.id}", response, is_new=is_new)


async def change(
    resource: type[AnyRun],
    run_id: str,
    update: RunUpdate,
    parts: ControlPlane,
    who: Principal,
    *,
    request: Request,
    if_match: str | None,
    router: APIRouter,
) -> AnyRun:
    """Change what may be changed of a job or a sweep, if it still is what `If-Match` names."""
    seen = None if if_match is None else resource.model_validate_json(await require_match(request, if_match, router))
    store = parts.store.of(who)
    run = await run_in_threadpool(lambda: store.change_priority(resource, run_id, update.priority, seen))
    parts.reconciler.wake()
    return run


def _accept(
    resource: type[AnyRun],
    spec: JobSpec | SweepSpec,
    parts: ControlPlane,
    who: Principal,
    idempotency_key: str | None,
    *,
    retry_of: str | None,
    priority: int,
) -> tuple[AnyRun, bool]:
    store = parts.store.of(who)
    run = store.find_of_key(resource, idempotency_key, spec) if idempotency_key else None
    is_new = False
    if run is None:
        require_possible(spec, parts.backend, parts.uri_policy)
        run, is_new = store.create(resource, spec, parts.runs_url, idempotency_key, retry_of, priority=priority)
        parts.reconciler.wake()
    return run, is_new


def created(made: Made, path: str, response: Response, *, is_new: bool) -> Made:
    """Answer a create: 201 with where the thing is; 200 when a repeated request finds it made."""
    response.headers["Location"] = path
    if not is_new:
        response.status_code = status.HTTP_200_OK
    return made
