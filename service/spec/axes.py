"""The axes of a sweep: what differs between its candidates, and which values each axis may take.

What an axis may not touch is for the sweep to say, in `service.spec.sweep`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from service.spec.base import SpecModel, conflict


class ShareRange(SpecModel):
    """How much of a mix a category may have."""

    min: float = Field(default=0.0, ge=0, le=1)
    """Least share of the whole mix."""
    max: float = Field(default=1.0, ge=0, le=1)
    """Greatest share."""

    @model_validator(mode="after")
    def _ordered(self) -> ShareRange:
        if self.min > self.max:
            raise conflict("min", f"is above `max` {self.max}")
        return self


class ChoiceAxis(SpecModel):
    """A field of the job that takes one of several values."""

    kind: Literal["choice"]
    path: str
    """Dotted path in the job, such as `data.sequence_length`."""
    values: tuple[JsonValue, ...] = Field(min_length=2)
    """What it may be, in an order in which neighbours are alike, where there is one."""

    @property
    def probes(self) -> tuple[JsonValue, ...]:
        """Values that tell whether the job takes all of them."""
        return self.values

    @model_validator(mode="after")
    def _distinct(self) -> ChoiceAxis:
        for number, value in enumerate(self.values):
            if value in self.values[:number]:
                raise conflict(f"values.{number}", f"{value!r} is there twice")
        return self


class RangeAxis(SpecModel):
    """A number of the job that takes any value of an interval."""

    kind: Literal["range"]
    path: str
    """Dotted path in the job, such as `train.learning_rate`. A field of whole numbers takes a `choice`."""
    low: float
    high: float
    log: bool = False
    """Whether equal ratios, not equal differences, are equally far."""

    @property
    def probes(self) -> tuple[JsonValue, ...]:
        """Values that tell whether the job takes all of them: the ends, and one between, which is no whole number."""
        between = self.low + (self.high - self.low) * 0.381966
        return (self.low, self.high, between)

    @model_validator(mode="after")
    def _ordered(self) -> RangeAxis:
        if self.low >= self.high:
            raise conflict("low", f"is not below `high` {self.high}")
        if self.log and self.low <= 0:
            raise conflict("low", "must be above 0 on a logarithmic axis")
        return self


FieldAxis = Annotated[ChoiceAxis | RangeAxis, Field(discriminator="kind")]


class Axes(SpecModel):
    """What differs between candidates."""

    mixture: dict[str, ShareRange] | None = None
    """Bounds of each category's share; all categories of the sources, whose shares sum to 1. By default each may have
    any share."""
    fields: tuple[FieldAxis, ...] = ()
    """Further fields of the job."""

    @model_validator(mode="after")
    def _apart(self) -> Axes:
        for number, axis in enumerate(self.fields):
            for other in self.fields[:number]:
                if is_within(axis.path, other.path) or is_within(other.path, axis.path):
                    raise conflict(f"fields.{number}.path", f"sets what the axis {other.path!r} sets")
        return self

    def probes(self) -> Iterator[tuple[str, dict[str, JsonValue]]]:
        """Changes of one field each that tell whether the job takes every value, with the path to the axis."""
        for number, axis in enumerate(self.fields):
            for value in axis.probes:
                yield f"axes.fields.{number}", {axis.path: value}


def is_within(path: str, other: str) -> bool:
    """Whether a dotted path is another one, or leads into what that one names."""
    return path == other or path.startswith(f"{other}.")
