"""`/v1/sweeps`: create, list, look at, change, cancel; trials, and the leaderboard of candidates."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response, status
from fastapi.responses import HTMLResponse

from service.api.access import Member, Viewer
from service.api.conditional import PRECONDITION, ConditionalRoute, IfMatch
from service.api.dependencies import ControlPlane, Parts, read_soon
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
from service.errors import NotFoundError
from service.run_reader import read_sweep, read_sweep_page
from service.spec.job import JobSpec
from service.spec.promotion import job_of_candidate
from service.spec.resources import JobEvent, Page, RunUpdate, Sweep
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, SweepResults, Trial, TrialStatus, leaderboard
from service.store.principal import Principal

_NOT_FOUND = not_found("sweep")

Item = TypeVar("Item", Trial, Candidate)
StageName = Annotated[str | None, Query(description="Only this stage's")]

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], responses=PROBLEMS, route_class=ConditionalRoute)


@router.post("", status_code=status.HTTP_201_CREATED, responses=CONFLICT | made_before(Sweep))
async def create_sweep(
    spec: SweepSpec,
    who: Member,
    parts: Parts,
    response: Response,
    *,
    priority: Priority = 0,
    idempotency_key: IdempotencyKey = None,
) -> Sweep:
    """Accept a sweep. It is stored before this answers, and will run whatever happens to the service."""
    return await accept(Sweep, spec, parts, who, response=response, idempotency_key=idempotency_key, priority=priority)


@router.get("", responses=_NOT_FOUND)
def list_sweeps(
    who: Viewer,
    parts: Parts,
    only: Filter,
    after: AfterId = None,
    limit: Limit = 50,
) -> Page[Sweep]:
    """List sweeps, newest first."""
    sweeps, has_more = parts.store.of(who).list_runs(Sweep, only=only, after=after, limit=limit)
    return Page(data=sweeps, has_more=has_more)


@router.get("/{sweep_id}", responses=_NOT_FOUND)
async def get_sweep(sweep_id: str, who: Viewer, parts: Parts) -> Sweep:
    """How a sweep stands."""
    return await read_soon(parts, lambda: parts.store.of(who).get(Sweep, sweep_id))


@router.patch("/{sweep_id}", responses=_NOT_FOUND | CONFLICT | PRECONDITION)
async def update_sweep(
    sweep_id: str, update: RunUpdate, who: Member, parts: Parts, *, request: Request, if_match: IfMatch = None
) -> Sweep:
    """Change the priority of a sweep that waits."""
    return await change(Sweep, sweep_id, update, parts, who, request=request, if_match=if_match, router=router)


@router.post("/{sweep_id}/cancel", responses=_NOT_FOUND | CONFLICT)
def cancel_sweep(sweep_id: str, who: Member, parts: Parts) -> Sweep:
    """Cancel a sweep; its processes end within seconds, and finished trials stay. Cancelling twice is no error."""
    sweep = parts.store.of(who).request_cancel(Sweep, sweep_id)
    parts.reconciler.wake()
    return sweep


@router.get("/{sweep_id}/events", responses=_NOT_FOUND)
def list_sweep_events(
    sweep_id: str, who: Viewer, parts: Parts, after: AfterEvent = 0, limit: Limit = 1000
) -> Page[JobEvent]:
    """What happened in a sweep, in order."""
    events, has_more = parts.store.of(who).list_events(Sweep, sweep_id, after=after, limit=limit)
    return Page(data=events, has_more=has_more)


@router.get("/{sweep_id}/results", responses=_NOT_FOUND)
def get_results(sweep_id: str, who: Viewer, parts: Parts) -> SweepResults:
    """All that a sweep has found so far."""
    sweep = parts.store.of(who).get(Sweep, sweep_id)
    results = _read(sweep)
    if results is None:
        raise NotFoundError(f"sweep {sweep_id} is {sweep.status}; results are there once it has begun its trials")
    return results


@router.get("/{sweep_id}/trials", responses=_NOT_FOUND)
def list_trials(
    sweep_id: str,
    who: Viewer,
    parts: Parts,
    *,
    stage: StageName = None,
    candidate: Annotated[str | None, Query(description="Only this candidate's")] = None,
    status: Annotated[list[TrialStatus] | None, Query(description="Only these")] = None,
    after: AfterId = None,
    limit: Limit = 50,
) -> Page[Trial]:
    """Trials in the order in which they were planned."""
    trials = [
        trial
        for trial in _results(parts, who, sweep_id).trials
        if stage in (None, trial.stage)
        and candidate in (None, trial.candidate)
        and (not status or trial.status in status)
    ]
    return _page(trials, after, limit)


@router.get("/{sweep_id}/trials/{trial_id}", responses=not_found("sweep or trial"))
def get_trial(sweep_id: str, trial_id: str, who: Viewer, parts: Parts) -> Trial:
    """One training run of a candidate."""
    return _find(_results(parts, who, sweep_id).trials, trial_id, "trial")


@router.get("/{sweep_id}/beams", responses=_NOT_FOUND)
def list_beams(
    sweep_id: str,
    who: Viewer,
    parts: Parts,
    *,
    stage: StageName = None,
    all: Annotated[bool, Query(description="Every candidate, not only beams and those that went on")] = False,
    after: AfterId = None,
    limit: Limit = 50,
) -> Page[Candidate]:
    """The leaderboard: of each stage the best first."""
    ranked = leaderboard(_results(parts, who, sweep_id), stage, only_beams=not all)
    return _page(ranked, after, limit)


@router.post("/{sweep_id}/beams/{candidate_id}/promote", responses=not_found("sweep or candidate") | CONFLICT)
def promote(sweep_id: str, candidate_id: str, who: Viewer, parts: Parts) -> JobSpec:
    """The job that trains a candidate's mix at full length, ready to be posted to `/v1/jobs`; nothing is started."""
    spec = SweepSpec.model_validate(parts.store.of(who).get(Sweep, sweep_id).spec)
    return job_of_candidate(spec, _find(_results(parts, who, sweep_id).candidates, candidate_id, "candidate"))


@router.get("/{sweep_id}/report", response_class=HTMLResponse, responses=_NOT_FOUND)
def get_sweep_report(sweep_id: str, who: Viewer, parts: Parts) -> HTMLResponse:
    """What a sweep found, as a page for people."""
    sweep = parts.store.of(who).get(Sweep, sweep_id)
    page = read_sweep_page(sweep.run_url)
    if page is None:
        raise NotFoundError(f"sweep {sweep_id} is {sweep.status}; a report is there once it has ended")
    return HTMLResponse(page)


def _results(parts: ControlPlane, who: Principal, sweep_id: str) -> SweepResults:
    """What has been found so far: nothing, before the first trial."""
    return _read(parts.store.of(who).get(Sweep, sweep_id)) or SweepResults(stages=[], candidates=[], trials=[])


def _read(sweep: Sweep) -> SweepResults | None:
    results = read_sweep(sweep.run_url)
    return results.as_ended() if results is not None and sweep.is_terminal else results


def _find(items: list[Item], item_id: str, kind: str) -> Item:
    for item in items:
        if item.id == item_id:
            return item
    raise NotFoundError(f"the sweep has no {kind} {item_id!r}")


def _page(items: list[Item], after: str | None, limit: int) -> Page[Item]:
    if after is not None:
        last = next((place for place, item in enumerate(items) if item.id == after), None)
        if last is None:
            raise NotFoundError(f"there is no {after!r} in this list")
        items = items[last + 1 :]
    return Page(data=items[:limit], has_more=len(items) > limit)
