"""How the progress of a job or a sweep follows from its events."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import TypeAdapter

from service.spec.event import Event
from service.spec.resources import JobProgress, RunKind, StageState, SweepProgress, TaskProgress
from service.store.stages import fold_stages, stage_tree
from service.store.telemetry import fold_telemetry

log = logging.getLogger(__name__)

_PROGRESS: dict[RunKind, type[TaskProgress]] = {"job": JobProgress, "sweep": SweepProgress}
_STAGES = TypeAdapter(list[StageState])

_TASK_FIELDS = ("task", "done", "total", "unit", "eta_s")
_STEP_FIELDS = ("eta_s", *(set(JobProgress.model_fields) - set(TaskProgress.model_fields)))
_SWEEP_FIELDS = tuple(set(SweepProgress.model_fields) - set(TaskProgress.model_fields))


def next_progress(kind: RunKind, progress: dict[str, Any], event: Event) -> dict[str, Any]:
    """Progress after one more event; the same where what the event says is none that this version can show.

    A row that cannot be read again would be in the way of every list that it is in.

    Args:
        kind: of the run.
        progress: a `JobProgress` or a `SweepProgress` as a dictionary.
        event: the next one.
    """
    try:
        folded = fold_progress(progress, event)
        _PROGRESS[kind].model_validate(folded)
        _STAGES.validate_python(stage_tree(folded.get("stages", {}), "running"))
    except (ValueError, TypeError, ArithmeticError) as error:  # pydantic's are ValueErrors
        log.warning("what an event %s says of progress is passed over: %s", event.type, error)
        return progress
    return folded


def fold_progress(progress: dict[str, Any], event: Event) -> dict[str, Any]:
    """Progress after one more event.

    Args:
        progress: a `JobProgress` or a `SweepProgress` as a dictionary.
        event: the next one.
    """
    progress = {**progress, "telemetry": fold_telemetry(progress.get("telemetry", {}), event)}
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
