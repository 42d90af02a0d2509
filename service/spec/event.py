"""What a running job says of itself, and where in the run directory it says it.

A job writes numbered, immutable segments of JSON lines below `events/`; the control plane lists what is new there and
ingests each segment exactly once, by name. Nothing is pushed from the cluster, so either side may die and return.
Several processes of one job write at once (the driver, rank 0 of each worker group), hence the writer's name in a
segment's name; the leading time makes the names sort in order of writing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

EVENTS_DIRECTORY = "events"
ATTEMPTS_DIRECTORY = "attempts"
ALIVE_INTERVAL_S = 60.0
"""A driver that has had nothing to say for so long says that it lives."""
_GROUP_S = 600
SPEC_FILE = "spec.json"
REPORT_FILE = "report.json"

Stage = Literal["prepare", "train", "evaluate", "export"]
STAGES: tuple[Stage, ...] = ("prepare", "train", "evaluate", "export")

EventType = Literal[
    "job.status",
    "job.started",
    "job.alive",
    "job.priority",
    "stage.started",
    "stage.progress",
    "stage.finished",
    "rows.skipped",
    "train.started",
    "train.proofs",
    "train.step",
    "job.warning",
    "checkpoint.saved",
    "eval.held_out",
    "eval.routing",
    "eval.samples",
    "eval.task",
    "sweep.progress",
    "trial.started",
    "trial.ended",
    "job.failed",
    "job.finished",
]

WarningKind = Literal[
    "step_skipped",
    "loss_spike",
    "dead_experts",
    "router_collapse",
    "checkpoint_delayed",
    "checkpoint_left_out",
    "checkpoint_damaged",
    "workers_restarted",
    "tracker_failed",
    "eta_slipped",
]
"""Of a `job.warning`. The last one is the control plane's, which compares what it is told; the others are the job's."""


class Event(BaseModel):
    """One thing that happened in a job.

    `data` by type:
        job.status: `old` (null when the job was created), `new`, `reason`. Written by the control plane, in the
            transaction that changes the job's state; all other types come from the cluster.
        job.priority: `old`, `new`; somebody has changed it while the job waits. Written by the control plane, likewise.
        job.alive: nothing; the driver has had nothing else to say for a minute. One that says nothing for ten
            (`service.attempts`) is taken for dead, whatever Ray believes.
        stage.progress: `task`, `done`, `total` (null when unknown), `unit`, `eta_s` (to the task's end, null when
            unknown).
        stage.finished: `duration_s` (of this start of it), `reused` (an earlier start had done it), `summary`. After a
            restart it may come again, `reused` then.
        rows.skipped: `count`, `path` (of a directory of Parquet files that list them all), `rows` (the first ones:
            `source`, `file`, `row`, `reason`, `excerpt`).
        train.started: `start_step`, `total_steps`, `workers` (of `rank`, `pid`, `node_id`, `peak_flops`: operations a
            second, null when not known), `frozen_bytes` (of gradients and optimiser state that frozen parts save one
            worker).
        train.proofs: `step` (optimiser steps done), `proofs` (of `name`, `passed`, `measured`, `tolerance`, `detail`;
            both numbers are null where there is nothing to measure). At each start of the workers, and after the last
            step.
        train.step: `step` (1-based), `total_steps`, `epoch`, `loss` (nats per trained token), `learning_rate`,
            `gradient_norm` (and its parts `gradient_norm_dense`, `gradient_norm_expert`), `is_skipped` (the gradient is
            not finite, and nothing was changed; what is not finite is null),
            `tokens_per_s`, `trained_tokens`, `tokens`, `balance_loss`, `balance_loss_floor`,
            `balance_loss_per_layer`, `dropped_fraction` (of token copies, over all layers), `eta_s`, `forward_s`,
            `backward_s`, `optimizer_s` and `data_wait_s` (of `step_s`, on worker 0), `memory_bytes` (most of any
            worker), `model_flops`, `model_flops_unfrozen` (if nothing was frozen), `model_flops_utilisation`, and
            others that readers may ignore. `docs/metrics.md` has them all.
        job.warning: `kind` (a `WarningKind`); the event's `message` says what; the job goes on.
            Of the kind `eta_slipped` it is the control plane's, with `told` and `expected`, when training is to end,
            and `late_s`.
        checkpoint.saved: `step`, `path` (below the run's `checkpoints/`; only the newest ones are kept).
        eval.held_out: `when` (before, step-<n>, after), `step`, `loss` (nats per trained token, by category).
        eval.routing: `when`, `step`, `path` (of all figures, in the run directory), `num_experts`, `categories` (by
            name: `copies` of tokens, and means over the layers), `layers` (all categories together, a list a figure),
            `specialisation_by_chance`, `most_specialised` (of `layer`, `specialisation`, `experts` by category). The
            figures are told in docs/routing.md; null where there is nothing to compare with.
        eval.samples: `when`, `step`, `samples` (of `prompt`, `completion`).
        eval.task: `when`, `step`, `task`, `kind`, `status` (succeeded, failed), `reason` (of the failure), `samples`
            (how many), `verdicts` (how many of each), `metrics` (by name: `score`, `standard_error`, `n`). All
            evaluations may come twice, the same, when a worker dies at that moment.
        sweep.progress: `round`, `trials_ended`, `trials_planned`, `best_score`, `best`, as in `SweepProgress`.
        trial.started: `trial`, `candidate`, `seed`, `mixture` (share by category, or null).
        trial.ended: `trial`, `status` (as of a `Trial`), `metrics`, `score` (null if it failed), `duration_s`.
        job.failed: `code`, `fault`, `field`; the reason is the event's `message`.
        job.finished: `report` (the path of the report).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    type: EventType
    stage: str | None = None
    """A job's is one of `STAGES`; a sweep's are `prepare` and those of its spec."""
    attempt: Annotated[int, Field(ge=1)] = 1
    message: str = ""
    data: dict[str, JsonValue] = {}


def segment_name(time_ns: int, writer: str, number: int) -> str:
    """Path of a segment below `events/`: sorts by time, unique by (writer, number).

    Segments of the same ten minutes share a directory: who looks for new ones lists the last of those, and not all that
    a job of a week has written.
    """
    start = datetime.fromtimestamp(time_ns // (_GROUP_S * 10**9) * _GROUP_S, UTC)
    return f"{start:%Y%m%dT%H%M}/{time_ns:020d}-{writer}-{number:08d}.jsonl"


def segment_group(name: str) -> str:
    """Directory of a segment; empty for one of an earlier version, which lies in none."""
    return name.rpartition("/")[0]
