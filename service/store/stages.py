"""The tree of a job's stages and their tasks, as it follows from the events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.spec.event import STAGES, Event
from service.spec.resources import TERMINAL_STATUSES, JobStatus, StageState

Stages = Mapping[str, Mapping[str, Any]]
"""Stages that have begun, by name; each as the fields of a `StageState`."""

_STEPS = "optimiser steps"


def fold_stages(stages: Stages, event: Event) -> Stages:
    """Stages after one more event.

    A stage that is started again, by a later attempt, keeps the time of its first start; one that had finished keeps
    what it took then.

    Args:
        stages: as they were.
        event: the next one.
    """
    if event.stage not in STAGES or (event.type == "eval.task" and event.stage not in stages):
        return stages  # evaluations before and during training are no part of the stage behind it
    stage = stages.get(event.stage, {"name": event.stage, "started_at": event.time.isoformat()})
    if event.type == "stage.started":
        stage = {**stage, "status": "running", "finished_at": None, "eta_s": None, "tasks": []}
    elif event.type == "stage.finished":
        stage = _finished(stage, event)
    elif (task := _task(event)) is not None:
        stage = {
            "status": "running",
            **stage,
            "tasks": _with_task(stage.get("tasks", []), task),
            "eta_s": task["eta_s"],
        }
    else:
        return stages
    return {**stages, event.stage: stage}


def _finished(stage: Mapping[str, Any], event: Event) -> dict[str, Any]:
    first = {"duration_s": event.data.get("duration_s"), "reused": event.data.get("reused", False)}
    known = {name: stage[name] for name in first if stage.get(name) is not None}
    tasks = [{**task, "status": "finished", "eta_s": None} for task in stage.get("tasks", [])]
    end = {"status": "finished", "finished_at": event.time.isoformat(), "eta_s": None, "tasks": tasks}
    return {**stage, **end, **first, **known}


def _task(event: Event) -> dict[str, Any] | None:
    """What an event tells of a task of its stage; None when it tells of none."""
    data = event.data
    if event.type == "stage.progress":
        fields = {name: data.get(name) for name in ("done", "total", "unit", "eta_s")}
        return {"name": data.get("task"), "status": "running", **fields}
    if event.type == "train.step":
        done = {"done": data.get("step"), "total": data.get("total_steps"), "unit": "steps"}
        return {"name": _STEPS, "status": "running", **done, "eta_s": data.get("eta_s")}
    if event.type == "eval.task":
        return {"name": f"{data.get('task')} ({data.get('when')})", "status": "finished", "eta_s": None}
    return None


def _with_task(tasks: list[dict[str, Any]], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks with one anew; those before it have finished."""
    others = [{**other, "status": "finished", "eta_s": None} for other in tasks if other["name"] != task["name"]]
    return [*others, task]


def stage_tree(stages: Stages, status: JobStatus) -> list[StageState]:
    """All stages of a job in order, those that have not begun too.

    Args:
        stages: as folded.
        status: of the job: where that has ended, no stage runs.
    """
    found = [StageState.model_validate(stages.get(name, {"name": name, "status": "pending"})) for name in STAGES]
    if status not in TERMINAL_STATUSES:
        return found
    end = {"status": "finished" if status == "succeeded" else status, "eta_s": None}
    return [stage.model_copy(update=end) if stage.status == "running" else stage for stage in found]
