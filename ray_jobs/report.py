"""The report of a finished job, put together from what its stages left in the run directory.

Training curves come from the events, which survive every restart, and not from any process's memory. A step that was
taken again after a restart counts once, with its last values.
"""

from __future__ import annotations

import math
from typing import Any

from fsspec.core import url_to_fs

from moe.config import MoEConfig
from ray_jobs.data.prepare import PreparedData
from ray_jobs.evaluate import router_health
from ray_jobs.evaluate.run import read_summaries
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.export import committed_export
from ray_jobs.train.loop import HELD_OUT_FILE, SAMPLES_FILE
from ray_jobs.train.schedule import num_warmup_steps
from ray_jobs.train.summary import summarise_steps
from service.spec.event import EVENTS_DIRECTORY, STAGES, Event
from service.spec.job import JobSpec


def read_events(run: RunDirectory) -> list[Event]:
    """All events of a run, in order of writing; none where it has not begun."""
    filesystem, directory = url_to_fs(run.join(EVENTS_DIRECTORY))
    filesystem.invalidate_cache()  # of the directory below, too
    if not filesystem.exists(directory):
        return []
    paths = sorted(path for path in filesystem.find(directory) if path.endswith(".jsonl"))
    lines = [line for path in paths for line in filesystem.cat_file(path).splitlines()]
    return [Event.model_validate_json(line) for line in lines]


def build_report(run: RunDirectory, spec: JobSpec, prepared: PreparedData, config: MoEConfig) -> dict[str, Any]:
    """All that a reader wants to know of a finished job.

    Args:
        run: holds events, evaluations and export.
        spec: the job's.
        prepared: the data it was trained on.
        config: the model's architecture.
    """
    events = read_events(run)
    whens = _whens(events)
    held_out = {when: (run.read_json(HELD_OUT_FILE.format(when=when)) or {}).get("loss", {}) for when in whens}
    return {
        "job_id": run.job_id,
        "name": spec.name,
        "outcome": "succeeded",
        "stages": _stages(events),
        "data": prepared.manifest,
        "model": {
            "base": spec.model.base.model_dump(),
            "num_params": config.num_params(),
            "num_active_params": config.num_active_params(),
            "num_trained_params": config.num_trained_params(spec.train.tuning),
        },
        "train": _training(events, spec),
        "proofs": [{"attempt": e.attempt, **e.data} for e in events if e.type == "train.proofs"],
        "held_out": held_out,
        "routing": router_health.read_summaries(run, whens),
        "evaluation": read_summaries(run, spec.evaluate, whens),
        "samples": _samples(run),
        "export": committed_export(run),
    }


_WHEN = ("before", "after")


def _whens(events: list[Event]) -> list[str]:
    """All times of evaluation, in order."""
    told: dict[str, Any] = {str(e.data["when"]): e.data["step"] for e in events if e.type == "eval.held_out"}
    steps: dict[str, float] = told | dict(zip(_WHEN, (-math.inf, math.inf), strict=True))
    return sorted(steps, key=lambda when: steps[when])


def _stages(events: list[Event]) -> list[dict[str, Any]]:
    """Each stage once, in order: how long the job needed for it, and what came out.

    `duration_s` goes from the first time that the stage was started to the first time that it was finished, restarts
    and waiting for room between them included. Later starts only find that it was done, so `reused` and `summary` are
    those of the first finish: true means that another job's result served, or one of an attempt that ended unheard.
    """
    stages = []
    for stage in STAGES:
        started, finished = (
            sorted((event for event in events if (event.type, event.stage) == (kind, stage)), key=lambda e: e.time)
            for kind in ("stage.started", "stage.finished")
        )
        if finished:
            duration_s = (finished[0].time - started[0].time).total_seconds()
            stages.append({"stage": stage, **finished[0].data, "duration_s": duration_s})
    return stages


def _training(events: list[Event], spec: JobSpec) -> dict[str, Any]:
    taken = [event.data for event in events if event.type == "train.step"]
    steps: dict[int, dict[str, Any]] = {int(data["step"]): data for data in taken}  # type: ignore[arg-type]
    starts = [event for event in events if event.type == "train.started"]
    workers: list[dict[str, Any]] = starts[-1].data["workers"]  # type: ignore[assignment]
    ordered = [steps[number] for number in sorted(steps)]
    last = ordered[-1]
    updates = [data for data in ordered if not data["is_skipped"]]
    total_steps = int(last["total_steps"])
    seconds, tokens = (sum(data[name] for data in ordered) for name in ("step_s", "tokens"))
    return {
        "steps": len(steps),
        "planned_steps": total_steps,
        "steps_skipped": len(ordered) - len(updates),
        "steps_taken_twice": len(taken) - len(steps),
        "restarts": len(starts) - 1,
        "nodes": len({worker["node_id"] for worker in workers}),
        "tokens": tokens,
        "epochs": last["epoch"],
        "warmup_steps": num_warmup_steps(total_steps, spec.train),
        "learning_rate": spec.train.learning_rate,
        "schedule": spec.train.schedule,
        "global_batch_rows": spec.train.global_batch_rows,
        "tokens_per_s": tokens / seconds,
        "duration_s": seconds,
        **summarise_steps(ordered, starts[-1].data["frozen_bytes"]),  # type: ignore[arg-type]
        "balance_loss": updates[-1]["balance_loss"],
        "balance_loss_floor": updates[-1]["balance_loss_floor"],
        "balance_loss_per_layer": updates[-1]["balance_loss_per_layer"],
        "learning_rate_curve": [[data["step"], data["learning_rate"]] for data in ordered],
        "loss_curve": [[data["step"], data["loss"]] for data in updates],
        "warnings": [
            {"kind": event.data["kind"], "message": event.message} for event in events if event.type == "job.warning"
        ],
    }


def _samples(run: RunDirectory) -> list[dict[str, str]]:
    before, after = ((run.read_json(SAMPLES_FILE.format(when=when)) or {}).get("samples", []) for when in _WHEN)
    return [
        {"prompt": old["prompt"], "before": old["completion"], "after": new["completion"]}
        for old, new in zip(before, after, strict=True)
    ]
