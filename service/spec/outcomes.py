"""What the API answers of a run's results, and of how two jobs differ."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import JsonValue

from service.spec.job import JobSpec
from service.spec.resources import Resource


class Checkpoint(Resource):
    """A training checkpoint that can be resumed from; a run keeps its newest ones only."""

    path: str
    """Below the run directory's `checkpoints/`."""
    attempt: int
    step: int
    """Optimiser steps done."""
    num_bytes: int
    num_shards: int
    saved_at: datetime | None = None
    """When the job told of it; null when it has not yet."""


class TaskEvaluation(Resource):
    """A benchmark, evaluated once."""

    task: str
    kind: str
    status: Literal["succeeded", "failed"]
    reason: str | None = None
    """Of a failure."""
    num_samples: int
    metrics: dict[str, JsonValue]
    """By name: `score`, `standard_error`, `n`."""


class Evaluation(Resource):
    """All that was evaluated at one time of a job."""

    when: str
    """`before`, `step-<n>` or `after`."""
    step: int
    held_out_loss: dict[str, float]
    """By category, nats per trained token."""
    tasks: list[TaskEvaluation]
    samples: list[dict[str, JsonValue]]
    """Of `prompt` and `completion`."""


class Artifact(Resource):
    """A file that a run has left: of its export, its evaluations, its reports."""

    path: str
    """Below the run directory; what `…/artifacts/{path}` takes."""
    num_bytes: int


class Preset(Resource):
    """An architecture by name, which a job's `model.base` may be."""

    name: str
    num_params: int
    num_active_params: int
    """Weights of one token's forward pass."""
    config: dict[str, JsonValue]
    """Its sizes."""


class SourceCheck(Resource):
    """Whether a file that a spec names is there."""

    field: str
    """Dotted path in the spec."""
    url: str
    status: Literal["found", "not_checked"]
    """`not_checked`: only the cluster can reach it."""
    num_files: int | None = None
    num_bytes: int | None = None


class Validation(Resource):
    """A job that would be accepted as it stands."""

    spec: JobSpec
    """With every default filled in."""
    spec_sha256: str
    files: list[SourceCheck]


class Difference(Resource):
    """A value that is not the same in two documents."""

    path: str
    """Dotted; items of a list that have a name or a category go by it."""
    left: Any = None
    """Null also where there is none."""
    right: Any = None
    change: float | None = None
    """`right` - `left`, of numbers."""


class JobDiff(Resource):
    """How two jobs differ."""

    left: str
    right: str
    spec: list[Difference]
    data: list[Difference]
    """Of what the jobs were trained on, as their reports tell; empty while one has none."""
    results: list[Difference]
    """Of training, evaluation and export, likewise."""
    notes: list[str]
    """What could not be compared."""


class Reproduction(Resource):
    """A job to be run again, held to the same data."""

    spec: JobSpec
    """Ready to be posted: every default of that day written out, the prepared data's hash required."""
    prepared_hash: str | None
    """Of the packed rows; null when the job never prepared any."""
    seeds: dict[str, int]
    versions: dict[str, str]
    """Of the packages that the job ran with, as far as it told."""
    differences: list[str]
    """What is otherwise today."""
