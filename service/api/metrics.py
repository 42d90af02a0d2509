"""`/v1/jobs/{id}/metrics`: what each step measured, and the curves that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query

from service.api.access import KeyedRoute, Viewer
from service.api.dependencies import Parts
from service.api.runs import PROBLEMS, Limit, not_found
from service.series import build_series
from service.spec.resources import MetricSeries, Page, StepMetrics
from service.store.event_log import LAST_STEP
from service.store.store import Store

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS, route_class=KeyedRoute)

_PAGE = 1000
FromStep = Annotated[int, Query(ge=0, le=LAST_STEP, description="First step")]
ToStep = Annotated[int, Query(ge=0, le=LAST_STEP, description="Last step")]


@router.get("/{job_id}/metrics", responses=not_found("job"))
def list_metrics(
    job_id: str,
    who: Viewer,
    parts: Parts,
    *,
    from_step: FromStep = 0,
    to_step: ToStep = LAST_STEP,
    after: Annotated[int, Query(ge=0, le=LAST_STEP, description="Last step already seen")] = 0,
    limit: Limit = 1000,
) -> Page[StepMetrics]:
    """Metrics of each training step, in order."""
    after = max(after, from_step - 1)
    metrics, has_more = parts.store.of(who).list_metrics(job_id, after=after, to_step=to_step, limit=limit)
    return Page(data=metrics, has_more=has_more)


@router.get("/{job_id}/metrics/series", responses=not_found("job"))
def list_series(
    job_id: str,
    who: Viewer,
    parts: Parts,
    *,
    name: Annotated[list[str], Query(description="Only these, or what lies below them, such as `loss`")] = [],  # noqa: B006
    from_step: FromStep = 0,
    to_step: ToStep = LAST_STEP,
    max_points: Annotated[int, Query(ge=2, le=10_000, description="Of each curve")] = 500,
) -> list[MetricSeries]:
    """The curve of each metric, of at most so many points that look the same (Largest-Triangle-Three-Buckets)."""
    steps = _all_steps(parts.store.of(who), job_id, from_step, to_step)
    return build_series(steps, name, max_points)


def _all_steps(store: Store, job_id: str, from_step: int, to_step: int) -> Iterator[StepMetrics]:
    """Page by page, so that the store is not kept waiting and not all is in memory at once."""
    after, has_more = max(from_step - 1, 0), True
    while has_more:
        page, has_more = store.list_metrics(job_id, after=after, to_step=to_step, limit=_PAGE)
        yield from page
        after = page[-1].step if page else after
