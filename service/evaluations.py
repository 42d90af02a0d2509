"""Evaluations of a job, put together from its events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.spec.outcomes import Evaluation, TaskEvaluation
from service.spec.resources import JobEvent

EVALUATION_TYPES = ("eval.held_out", "eval.samples", "eval.task")


def build_evaluations(events: Iterable[JobEvent]) -> list[Evaluation]:
    """Evaluations by time: before training first, the end last.

    Args:
        events: of `EVALUATION_TYPES`, in order; what was told twice counts once.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        when = str(event.data["when"])
        at = found.setdefault(when, {"when": when, "step": event.data["step"], "tasks": {}})
        if event.type == "eval.task":
            at["tasks"][event.data["task"]] = _task(event)
        elif event.type == "eval.held_out":
            at["held_out_loss"] = event.data["loss"]
        else:
            at["samples"] = event.data["samples"]
    ordered = sorted(found.values(), key=lambda at: (at["when"] != "before", at["when"] == "after", at["step"]))
    empty: dict[str, Any] = {"held_out_loss": {}, "samples": []}
    return [Evaluation.model_validate({**empty, **at, "tasks": list(at["tasks"].values())}) for at in ordered]


def _task(event: JobEvent) -> TaskEvaluation:
    data = event.data
    fields = {name: data.get(name) for name in ("task", "kind", "status", "reason", "metrics")}
    return TaskEvaluation.model_validate({**fields, "num_samples": data["samples"]})
