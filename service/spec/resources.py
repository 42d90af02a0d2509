"""What the REST API answers: the same models on both sides of the wire."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.errors import Fault
from service.spec.base import SpecModel

RunKind = Literal["job", "sweep"]
JobStatus = Literal[
    "needs_approval",
    "queued",
    "submitting",
    "running",
    "preempting",
    "cancelling",
    "succeeded",
    "failed",
    "cancelled",
]
MIN_PRIORITY, MAX_PRIORITY = -10, 10
TERMINAL_STATUSES: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})
ACTIVE_STATUSES: frozenset[JobStatus] = frozenset({"submitting", "running", "preempting", "cancelling"})
UNFINISHED_STATUSES: frozenset[JobStatus] = ACTIVE_STATUSES | {"needs_approval", "queued"}


class Resource(BaseModel):
    """Base of all answers; unknown fields are ignored, so an older client can read a newer server."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class JobError(Resource):
    """Why a job failed."""

    code: str
    """Stable word for programs, such as `bad_row`."""
    fault: Fault
    """Who can mend it."""
    message: str
    field: str | None = None
    """Dotted path of the spec field at fault, if one is."""


class TaskProgress(Resource):
    """How far a stage's task is; null where not known yet."""

    stage: str | None = None
    """Of a job `prepare`, `train`, `evaluate` or `export`; of a sweep `prepare`, or one of its own."""
    task: str | None = None
    """What the stage is doing, in words."""
    done: int | None = None
    """Units of the task done."""
    total: int | None = None
    """Units of the task in all."""
    unit: str | None = None
    eta_s: float | None = None
    """Seconds until the end of the task, in training until the last step."""


class JobProgress(TaskProgress):
    """How far a job is; null where not known yet."""

    step: int | None = None
    """Optimiser steps done."""
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    """Nats per trained token, of the last step."""
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    balance_loss: float | None = None
    """Sum over layers, of the last step."""
    balance_loss_floor: float | None = None
    """The same at perfect balance."""
    memory_bytes: int | None = None
    """Most that any worker had in use, as of the last step."""
    model_flops_utilisation: float | None = None
    """Operations of the last step, as a share of the peak of all workers; also null where that is not known."""


class TaskState(Resource):
    """A part of a stage's work."""

    name: str
    status: Literal["running", "finished"]
    done: int | None = None
    """Units done."""
    total: int | None = None
    """Units in all; null when not known."""
    unit: str | None = None
    eta_s: float | None = None
    """Seconds until its end; null when not known."""


class StageState(Resource):
    """How far a stage is."""

    name: str
    status: Literal["pending", "running", "finished", "failed", "cancelled"]
    started_at: datetime | None = None
    """When it was first started."""
    finished_at: datetime | None = None
    duration_s: float | None = None
    """Of the start that first finished it."""
    reused: bool = False
    """Whether an earlier job or attempt had done it."""
    eta_s: float | None = None
    """Seconds until the end of the task at hand, in training until the last step; null when not known."""
    tasks: list[TaskState] = []
    """Those that have begun, of its latest start."""


class SweepProgress(TaskProgress):
    """How far a sweep is; null where not known yet."""

    round: int | None = None
    """Of the stage, from 0."""
    trials_ended: int | None = None
    """Trials that have ended, one way or another."""
    trials_planned: int | None = None
    """Trials of the rounds begun so far, those that have ended included; later rounds and stages add theirs."""
    best: str | None = None
    """The best candidate so far."""
    best_score: float | None = None
    """Its score."""


class Run(Resource):
    """What the service runs: one driver, started again when it is lost, with a directory of its own."""

    kind: ClassVar[RunKind]

    id: str
    project: str = "default"
    """Whose members see it."""
    created_by: str | None = None
    """The user who asked for it; null when that was before there were users."""
    name: str
    status: JobStatus
    attempt: int
    """Times the driver was started; 0 while queued."""
    attempts_before: int = 0
    """Those before it was last resumed."""
    retry_of: str | None = None
    """The job that this one was retried from."""
    queue_position: int | None = None
    """1 for the next to start; null unless queued."""
    queue_reason: str | None = None
    """Why it does not run yet: what it waits for, or who must approve it."""
    queue_eta_s: float | None = None
    """Seconds until it starts, as far as the time left of the running jobs tells."""
    priority: int = 0
    """Higher goes first, and may make lower ones give way."""
    gpu_seconds: float = 0.0
    """Used so far, over all attempts, to within a few seconds; a worker counts as a GPU."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    run_url: str
    """The run directory: the spec, events and all that comes of it."""
    error: JobError | None = None
    """Set when the status is `failed`."""
    spec: dict[str, JsonValue]
    """As accepted, every default of that day filled in."""
    spec_sha256: str
    """Equal specs have equal hashes."""

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in TERMINAL_STATUSES


class Job(Run):
    """A fine-tuning job; its `spec` is a `JobSpec`."""

    kind = "job"

    progress: JobProgress
    stages: list[StageState] = []
    """All of them, in order, with the tasks of those that have begun."""


class Sweep(Run):
    """A sweep over data mixes; its `spec` is a `SweepSpec`."""

    kind = "sweep"

    progress: SweepProgress


class RunUpdate(SpecModel):
    """What may be changed of a job or a sweep after it was posted."""

    priority: int = Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)
    """Higher goes first; it may be changed while the job waits."""


class JobEvent(Resource):
    """An event with its place in the job's history; `service.spec.event.Event` lists types and data."""

    sequence: int
    """Rises by 1 with each event of the job; what `after` takes."""
    time: datetime
    type: str
    stage: str | None = None
    attempt: int
    message: str = ""
    data: dict[str, JsonValue] = {}


class StepMetrics(Resource):
    """What one optimiser step said of itself; of a step taken twice, the last word."""

    step: int
    data: dict[str, JsonValue]
    """As the `train.step` event lists it."""


class MetricSeries(Resource):
    """The curve of one metric, of points that were measured."""

    name: str
    """Dotted path in the step's data, such as `loss` or `loss_by_category.math`."""
    num_points: int
    """Steps that have told it, of which these are a selection."""
    steps: list[int]
    values: list[float]
    """Of these steps, in order."""
    min: float
    max: float
    """Over all points, also those left out."""


Item = TypeVar("Item")


class Page(Resource, Generic[Item]):
    """A part of a list."""

    data: list[Item]
    has_more: bool
    """Whether asking with `after` set to the last item's key gives more."""


class Health(Resource):
    """Whether the service can do its work."""

    status: Literal["ok", "unavailable"]
    store: str = "ok"
    cluster: str = "ok"
    version: str = ""


class FieldProblem(Resource):
    """One fault of a request."""

    field: str
    """Dotted path in the body, such as `data.sources.0.uri`."""
    message: str


class Problem(Resource):
    """An error, as RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    """Stable word for programs."""
    errors: list[FieldProblem] = Field(default_factory=list)
