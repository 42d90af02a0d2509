"""How the progress of a job or a sweep follows from its events."""

from __future__ import annotations

from typing import Any

from service.spec.event import Event
from service.spec.resources import JobProgress, SweepProgress, TaskProgress
from service.store.stages import fold_stages

_TASK_FIELDS = ("task", "done", "total", "unit", "eta_s")
_STEP_FIELDS = ("eta_s", *(set(JobProgress.model_fields) - set(TaskProgress.model_fields)))
_SWEEP_FIELDS = tuple(set(SweepProgress.model_fields) - set(TaskProgress.model_fields))


def fold_progress(progress: dict[str, Any], event: Event) -> dict[str, Any]:
    """Progress after one more event.

    Args:
        progress: a `JobProgress` or a `SweepProgress` as a dictionary.
        event: the next one.
    """
    if (stages := fold_stages(progress.get("stages", {}), event)) is not progress.get("stages"):
        progress = {**progress, "stages": stages}
    if event.type == "stage.started":
        return {**progress, "stage": event.stage, **dict.fromkeys(_TASK_FIELDS)}
    if event.type == "stage.progress":
        return {**progress, "stage": event.stage, **{name: event.data.get(name) for name in _TASK_FIELDS}}
    if event.type == "train.started":
        return {**progress, "step": event.data.get("start_step"), "total_steps": event.data.get("total_steps")}
    if event.type == "train.step":
        return {**progress, **{name: event.data.get(name) for name in _STEP_FIELDS}}
    if event.type == "sweep.progress":
        taken = {name: event.data.get(name) for name in _SWEEP_FIELDS}
        return {**progress, "stage": event.stage, **dict.fromkeys(_TASK_FIELDS), **taken}
    return progress
