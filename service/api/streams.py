"""Events and logs as they come: `…/events:stream` and `…/logs?follow=true` of jobs and sweeps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, StreamingResponse

from service.api.access import KeyedRoute, Viewer
from service.api.dependencies import ControlPlane, Parts
from service.api.event_feed import Included, is_seen
from service.api.runs import PROBLEMS, UNAVAILABLE, AfterEvent, Answers, not_found
from service.backends.base import submission_id
from service.spec.resources import Job, Run, Sweep
from service.store.principal import Principal

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=KeyedRoute)


class EventStream(StreamingResponse):
    """Server-sent events, which no cache or proxy should hold back."""

    media_type = "text/event-stream"

    def init_headers(self, headers: object = None) -> None:
        """Ask those in between to pass each message on at once."""
        del headers
        super().init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


LastEventId = Annotated[
    int | None, Header(ge=0, lt=2**31, description="As a browser sends it on reconnecting; counts before `after`")
]
Include = Annotated[
    list[Included],
    Query(description="`events`; `snapshots`: how it stands, without its spec, now and whenever that has changed"),
]
Follow = Annotated[bool, Query(description="Go on until it is over")]
Tail = Annotated[int | None, Query(ge=1, description="Only the last lines")]

_NO_MORE: Answers = {204: {"description": "It is over, and `Last-Event-ID` is its last event: do not come back"}}
_EVENTS: Answers = {200: {"description": "A message an event: its type as `event`, its sequence as `id`; then `end`"}}


@router.get(
    "/jobs/{job_id}/events:stream",
    tags=["jobs"],
    response_class=EventStream,
    responses=_EVENTS | _NO_MORE | not_found("job"),
)
async def stream_job_events(
    job_id: str,
    who: Viewer,
    parts: Parts,
    *,
    include: Include = ["events"],  # noqa: B006  FastAPI copies it
    after: AfterEvent = 0,
    last_event_id: LastEventId = None,
) -> Response:
    """Follow a job's events as server-sent events, until it has ended."""
    return await _stream_events(await _visible(parts, who, Job, job_id), parts, include, (after, last_event_id))


@router.get(
    "/sweeps/{sweep_id}/events:stream",
    tags=["sweeps"],
    response_class=EventStream,
    responses=_EVENTS | _NO_MORE | not_found("sweep"),
)
async def stream_sweep_events(
    sweep_id: str,
    who: Viewer,
    parts: Parts,
    *,
    include: Include = ["events"],  # noqa: B006  FastAPI copies it
    after: AfterEvent = 0,
    last_event_id: LastEventId = None,
) -> Response:
    """Follow a sweep's events as server-sent events, until it has ended."""
    return await _stream_events(await _visible(parts, who, Sweep, sweep_id), parts, include, (after, last_event_id))


@router.get(
    "/jobs/{job_id}/logs",
    tags=["jobs"],
    response_class=PlainTextResponse,
    responses=not_found("job") | UNAVAILABLE,
)
async def get_logs(job_id: str, who: Viewer, parts: Parts, tail: Tail = None, follow: Follow = False) -> Response:
    """What the driver and its workers printed, of the latest attempt; followed, that of later attempts too."""
    return await _logs(await _visible(parts, who, Job, job_id), parts, tail, follow=follow)


@router.get(
    "/sweeps/{sweep_id}/logs",
    tags=["sweeps"],
    response_class=PlainTextResponse,
    responses=not_found("sweep") | UNAVAILABLE,
)
async def get_sweep_logs(
    sweep_id: str, who: Viewer, parts: Parts, tail: Tail = None, follow: Follow = False
) -> Response:
    """As a job's logs."""
    return await _logs(await _visible(parts, who, Sweep, sweep_id), parts, tail, follow=follow)


async def _visible(parts: ControlPlane, who: Principal, resource: type[Run], run_id: str) -> Run:
    return await run_in_threadpool(parts.store.of(who).get, resource, run_id)


async def _stream_events(
    run: Run, parts: ControlPlane, include: list[Included], position: tuple[int, int | None]
) -> Response:
    """Follow a run from the position that the query, or a browser that reconnects, tells."""
    after, last_event_id = position
    if last_event_id is not None:
        after = last_event_id
        heads = await run_in_threadpool(parts.store.heads, [run.id])
        if run.id in heads and is_seen(heads[run.id], last_event_id):
            return Response(status_code=status.HTTP_204_NO_CONTENT)
    return EventStream(parts.event_feed.follow(run.id, after, include))


async def _logs(run: Run, parts: ControlPlane, tail: int | None, *, follow: bool) -> Response:
    text = await run_in_threadpool(parts.backend.logs, submission_id(run.id, run.attempt))
    if follow:
        stream = parts.log_feed.follow(run.id, tail)
        return StreamingResponse(stream, media_type="text/plain", headers={"X-Accel-Buffering": "no"})
    lines = text.splitlines(keepends=True)
    return PlainTextResponse("".join(lines[-tail:] if tail else lines))
