"""From events to scalars by name, as `train/loss/math` or `train/balance_loss/layer_03`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.spec.event import EventType

_NOT_MEASURED = {"step", "total_steps", "eta_s"}


@dataclass(frozen=True)
class Point:
    """What one event measured.

    Attributes:
        step: optimiser steps done.
        scalars: by name; what is not finite is left out.
        is_training: of a `train.step`, not of an evaluation.
        time_s: seconds since 1970.
    """

    step: int
    scalars: dict[str, float]
    is_training: bool
    time_s: float = field(default_factory=time.time)


def point_of(type: EventType, data: dict[str, Any]) -> Point | None:
    """What a tracker shows of an event; None of one that measures nothing.

    Args:
        type: the event's.
        data: as `service.spec.event.Event` lists it.
    """
    if type == "train.step":
        measured = {name: value for name, value in data.items() if name not in _NOT_MEASURED}
        return Point(data["step"], dict(_flat("train", measured)), is_training=True)
    if type == "eval.held_out":
        return Point(data["step"], dict(_flat("eval/held_out", data["loss"])), is_training=False)
    if type == "eval.routing":
        by_category = {
            category: {name: value for name, value in figures.items() if name != "copies"}
            for category, figures in data["categories"].items()
        }
        return Point(data["step"], dict(_flat("eval/routing", {**data["layers"], **by_category})), is_training=False)
    if type == "eval.task":
        scores = {name: metric["score"] for name, metric in (data["metrics"] or {}).items()}
        return Point(data["step"], dict(_flat(f"eval/{data['task']}", scores)), is_training=False)
    return None


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Numbers within dictionaries and lists; the latter are of layers."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name.removesuffix('_by_category')}/{key}", part)
    elif isinstance(value, list):
        for layer, part in enumerate(value):
            yield from _flat(f"{name.removesuffix('_per_layer')}/layer_{layer:02}", part)
    elif isinstance(value, (int, float)) and math.isfinite(value):
        yield name, float(value)
