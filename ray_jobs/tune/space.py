"""What a sweep searches: the mixes within bounds, and the values of the further axes.

A point's coordinates are its shares, then a number in [0, 1] for each further axis. A step of a certain size is as
large a part of the mix as of an axis.

Shape suffixes as in `simplex`; C coordinates: K shares and one for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue

from ray_jobs.tune.simplex import Bounds, corners, from_cube, lattice, nearest, rounded
from service.spec.axes import ChoiceAxis, FieldAxis, RangeAxis
from service.spec.sweep import SweepSpec


class Point(NamedTuple):
    """What a candidate is made of; equal points are the same candidate."""

    shares: tuple[float, ...]
    """By category in order of name."""
    values: tuple[JsonValue, ...] = ()
    """Of the further axes, in the spec's order."""

    @property
    def key(self) -> str:
        """Equal for equal points; values may be lists, which have no hash."""
        return repr(self)


class Space(NamedTuple):
    """All points that a sweep may try."""

    categories: tuple[str, ...]
    bounds: Bounds
    fields: tuple[FieldAxis, ...]
    base: Point
    """The base job's; the one point that may be out of bounds."""

    @classmethod
    def of(cls, spec: SweepSpec, base_mixture: Mapping[str, float]) -> Space:
        """The space of a sweep.

        Args:
            spec: of the sweep.
            base_mixture: share of each category in the base job's mix.
        """
        limits = spec.bounds()
        categories = spec.categories
        bounds = Bounds(
            np.array([limits[category].min for category in categories]),
            np.array([limits[category].max for category in categories]),
        )
        document = spec.base.model_dump(mode="json")
        values = tuple(_at(document, axis.path) for axis in spec.axes.fields)
        unbounded = Bounds(np.zeros(len(categories)), np.ones(len(categories)))
        shares = rounded(np.array([base_mixture.get(category, 0.0) for category in categories]), unbounded)
        return cls(categories, bounds, spec.axes.fields, Point(shares, values))

    @property
    def num_dimensions(self) -> int:
        """Of the cube that `from_cube` takes."""
        return len(self.categories) - 1 + len(self.fields)

    def from_cube(self, cube_ND: np.ndarray) -> Iterator[Point]:
        """Points by their place in the unit cube, [N, num_dimensions]; an even spread gives an even spread."""
        split = len(self.categories) - 1
        shares_NK = from_cube(cube_ND[:, :split], self.bounds)
        return (self._point(shares_K, cube_D[split:]) for shares_K, cube_D in zip(shares_NK, cube_ND, strict=True))

    def corners(self) -> list[Point]:
        """As near to each category alone as the bounds allow, with the base job's other values."""
        return [Point(rounded(shares_K, self.bounds), self.base.values) for shares_K in corners(self.bounds)]

    def grid(self, max_points: int) -> list[Point]:
        """Every combination of lattice mixes and of the axes' values; of an interval its ends and its middle."""
        levels: list[list[JsonValue]] = [[]]
        for axis in self.fields:
            steps = axis.values if isinstance(axis, ChoiceAxis) else [_value(axis, x) for x in (0.0, 0.5, 1.0)]
            levels = [[*level, step] for level in levels for step in steps]
        mixes_NK = lattice(max(1, max_points // len(levels)), self.bounds)
        points = [Point(rounded(mix_K, self.bounds), tuple(level)) for mix_K in mixes_NK for level in levels]
        return points[:max_points]

    def near(self, coordinates_C: np.ndarray) -> Point:
        """The point within bounds that is nearest to some coordinates."""
        split = len(self.categories)
        return self._point(nearest(coordinates_C[:split], self.bounds), np.clip(coordinates_C[split:], 0, 1))

    def coordinates(self, point: Point) -> np.ndarray:
        """Shares, and the place in its axis of each value, [C]."""
        places = [_place(axis, value) for axis, value in zip(self.fields, point.values, strict=True)]
        return np.array([*point.shares, *places])

    def mixture(self, point: Point) -> dict[str, float]:
        """Share by category."""
        return dict(zip(self.categories, point.shares, strict=True))

    def field_values(self, point: Point) -> dict[str, JsonValue]:
        """Value by dotted path."""
        return {axis.path: value for axis, value in zip(self.fields, point.values, strict=True)}

    def _point(self, shares_K: np.ndarray, places: Iterable[float]) -> Point:
        values = tuple(_value(axis, float(x)) for axis, x in zip(self.fields, places, strict=True))
        return Point(rounded(shares_K, self.bounds), values)


def _value(axis: FieldAxis, place: float) -> JsonValue:
    if isinstance(axis, ChoiceAxis):
        return axis.values[min(int(place * len(axis.values)), len(axis.values) - 1)]
    if axis.log:
        return _significant(axis.low * (axis.high / axis.low) ** place, axis)
    return _significant(axis.low + (axis.high - axis.low) * place, axis)


def _significant(value: float, axis: RangeAxis) -> float:
    """To 4 significant digits, which people can read, within the interval."""
    return min(max(float(f"{value:.4g}"), axis.low), axis.high)


def _place(axis: FieldAxis, value: JsonValue) -> float:
    if isinstance(axis, ChoiceAxis):
        # the middle of the choice's part of the axis; the base job's value need not be one
        return (axis.values.index(value) + 0.5) / len(axis.values) if value in axis.values else 0.5
    if not isinstance(value, int | float):
        return 0.5  # the base job has none of its own
    number = min(max(float(value), axis.low), axis.high)
    if axis.log:
        return math.log(number / axis.low) / math.log(axis.high / axis.low)
    return (number - axis.low) / (axis.high - axis.low)


def _at(document: Any, path: str) -> JsonValue:
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document  # type: ignore[no-any-return]
