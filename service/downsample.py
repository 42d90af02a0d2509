"""Fewer points of a curve that look the same: Largest-Triangle-Three-Buckets.

Steinarsson, "Downsampling Time Series for Visual Representation" (University of Iceland, 2013). What lies between the
first and the last point is cut into equal buckets, and of each the point is kept that spans the largest triangle with
the one kept before and the mean of the next bucket: spikes survive, and every point that is given was measured.
Rejected: every n-th point, which loses spikes; means, which were never measured; the least and the most of each bucket,
which draw a band where a line was.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

Point = tuple[float, float]


def largest_triangles(points: Sequence[Point], max_points: int) -> list[Point]:
    """At most `max_points` of a curve, in order, the first and the last among them.

    Args:
        points: by rising x, all finite.
        max_points: at least 2.
    """
    if len(points) <= max_points:
        return list(points)
    kept = [points[0]]
    bounds = _bounds(len(points), max_points - 2)
    for number in range(max_points - 2):
        following = points[bounds[number + 1] : bounds[number + 2]] if number < max_points - 3 else [points[-1]]
        corner = (_mean([x for x, _ in following]), _mean([y for _, y in following]))
        last = kept[-1]
        bucket = points[bounds[number] : bounds[number + 1]]
        kept.append(max(bucket, key=lambda point: _area(last, point, corner)))
    return [*kept, points[-1]]


def _bounds(num_points: int, num_buckets: int) -> list[int]:
    """Where the buckets of the points between first and last begin, and the end of the last one."""
    width = (num_points - 2) / max(num_buckets, 1)
    return [1 + ceil(number * width) for number in range(num_buckets)] + [num_points - 1]


def _area(a: Point, b: Point, c: Point) -> float:
    """Twice the area of a triangle."""
    return abs((a[0] - c[0]) * (b[1] - a[1]) - (a[0] - b[0]) * (c[1] - a[1]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
