"""Curves of a run's metrics: what the steps tell, turned into one series a name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from math import isfinite

from pydantic import JsonValue

from service.downsample import Point, largest_triangles
from service.spec.resources import MetricSeries, StepMetrics


def build_series(steps: Iterable[StepMetrics], names: Collection[str], max_points: int) -> list[MetricSeries]:
    """One curve a metric, each with its own points.

    Args:
        steps: in order.
        names: only these, or what lies below them; all when empty.
        max_points: of each curve.
    """
    points: dict[str, list[Point]] = defaultdict(list)
    for step in steps:
        for name, value in _numbers("", step.data):
            if not names or any(name == wanted or name.startswith(f"{wanted}.") for wanted in names):
                points[name].append((step.step, value))
    return [_series(name, found, max_points) for name, found in sorted(points.items())]


def _series(name: str, points: list[Point], max_points: int) -> MetricSeries:
    kept = largest_triangles(points, max_points)
    return MetricSeries(
        name=name,
        num_points=len(points),
        steps=[int(step) for step, _ in kept],
        values=[value for _, value in kept],
        min=min(value for _, value in points),
        max=max(value for _, value in points),
    )


def _numbers(prefix: str, value: JsonValue) -> Iterator[tuple[str, float]]:
    """Every finite number in a document, by its dotted path; truths are 0 or 1."""
    if isinstance(value, dict):
        items = [(name, item) for name, item in value.items() if (prefix, name) != ("", "step")]
    elif isinstance(value, list):
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        if isinstance(value, (bool, int, float)) and isfinite(value):
            yield prefix, float(value)
        return
    for name, item in items:
        yield from _numbers(f"{prefix}.{name}" if prefix else name, item)
