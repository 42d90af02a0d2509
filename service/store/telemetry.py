"""What monitoring wants to know of a run, kept with its progress as its events come in.

So a scrape reads one row a running job, and no events. Kept is what the last step measured beyond the progress itself,
what preparation did to the rows, and how many warnings and skipped steps there were; figures of layers to six digits,
for the row is written again with each segment.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, JsonValue, ValidationError

from service.spec.event import Event

log = logging.getLogger(__name__)

Telemetry = Mapping[str, Any]
"""`last_event_at`; of the last step `step` and `layers`; `skipped_steps`; `warnings` by kind; `num_experts`; `data`."""

STEP_FIELDS = (
    "gradient_norm",
    "dropped_fraction",
    "step_s",
    "data_wait_s",
    "forward_s",
    "backward_s",
    "optimizer_s",
)
LAYER_FIELDS = ("load_max_over_mean", "dead_experts", "router_entropy")
"""Lists of the layers' figures; in the event their names end in `_per_layer`."""


def fold_telemetry(telemetry: Telemetry, event: Event) -> dict[str, Any]:
    """Telemetry after one more event; that a driver lives is no sign of work, and changes nothing.

    Args:
        telemetry: as it was; empty at first.
        event: the next one.
    """
    if event.type == "job.alive":
        return dict(telemetry)
    time, data = event.time.isoformat(), event.data
    told: dict[str, Any] = {**telemetry, "last_event_at": max(time, telemetry.get("last_event_at", time))}
    if event.type == "train.step":
        told |= {"step": {name: data.get(name) for name in STEP_FIELDS}, "layers": _layers(data)}
        told["skipped_steps"] = telemetry.get("skipped_steps", 0) + bool(data.get("is_skipped"))
    elif event.type == "job.warning":
        before = telemetry.get("warnings", {})
        kind = str(data.get("kind"))
        told["warnings"] = {**before, kind: before.get(kind, 0) + 1}
    elif event.type == "eval.routing":
        told["num_experts"] = data.get("num_experts")
    elif event.type == "stage.finished" and event.stage == "prepare":
        told["data"] = _prepared(data.get("summary"))
    return told


def _layers(data: Mapping[str, JsonValue]) -> dict[str, list[float | None]]:
    found = {name: data.get(f"{name}_per_layer") for name in LAYER_FIELDS}
    return {name: [_rounded(value) for value in values] for name, values in found.items() if isinstance(values, list)}


def _rounded(value: JsonValue) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, int | float) else None


class _Stage(BaseModel):
    rows_in: int
    rows_out: int
    gone: dict[str, int]


class _Packing(BaseModel):
    rows: int | None = None
    fill: float | None = None
    trained_fraction: float | None = None
    tokens: int | None = None


class _Manifest(BaseModel):
    """What is read of a manifest of prepared data."""

    accounting: Annotated[list[_Stage], Field(min_length=1)]
    packing: _Packing = _Packing()


def _prepared(manifest: JsonValue) -> dict[str, Any]:
    """The manifest's sums; empty where it is of another form."""
    try:
        found = _Manifest.model_validate(manifest)
    except ValidationError as error:
        log.warning("a manifest of prepared data is of another form: %s", error)
        return {}
    gone: Counter[str] = Counter()
    for stage in found.accounting:
        gone.update(stage.gone)
    packing = found.packing.model_dump()
    rows = {"rows_read": found.accounting[0].rows_in, "rows_kept": found.accounting[-1].rows_out}
    return {**rows, "rows_dropped": dict(gone), "packed_rows": packing.pop("rows"), **packing}
