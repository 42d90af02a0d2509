"""Requests and answers in OpenAI's form, as its Python package 3.54 sends and reads them.

Fields of our own travel in one place: `sleddog`, which the package sends from `extra_body` and gives back in
`model_extra`.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, JsonValue

from service.spec.base import SpecModel
from service.spec.resources import Resource

Auto = Literal["auto"]


class Hyperparameters(SpecModel):
    """Of a supervised job; `auto` leaves the choice to the service."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=100)] = "auto"
    """Passes over the packed rows; `auto` is the recipe's 2."""
    batch_size: Auto | Annotated[int, Field(ge=1, le=65_536)] = "auto"
    """Packed rows in one optimiser step, over all workers. `auto` follows the size of the files."""
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1_000_000)] = "auto"
    """Times the recipe's peak learning rate, 2e-5; `auto` is 1."""


class Supervised(SpecModel):
    """Of the method."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(SpecModel):
    """How to train: supervised, and no other way."""

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class WandbSettings(SpecModel):
    """Where a run of Weights & Biases goes."""

    project: str = Field(min_length=1)
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()


class Integration(SpecModel):
    """A tracker: Weights & Biases, of which project and entity are passed on."""

    type: Literal["wandb"]
    wandb: WandbSettings


class FineTuningRequest(SpecModel):
    """Asks for a fine-tuning job."""

    model: str = Field(min_length=1, max_length=500)
    """Id of a model as `/v1/models` lists it: a preset, a registered checkpoint, or a fine-tuned model."""
    training_file: str = Field(min_length=1)
    """Id of a file of chats."""
    validation_file: str | None = None
    """Id of a file of chats that are never trained on; the loss on them is measured before, during and after."""
    hyperparameters: Hyperparameters | None = None
    """Deprecated form; `method` has them now."""
    method: Method | None = None
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    """Becomes the job's name, and a part of the fine-tuned model's."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    integrations: tuple[Integration, ...] | None = Field(default=None, max_length=1)
    sleddog: dict[str, JsonValue] = Field(default={})
    """Any part of a `JobSpec`, laid over what the other fields say; sent by `extra_body`."""


class JobErrorForm(Resource):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class OpenAIJob(Resource):
    """A fine-tuning job in OpenAI's form."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    """Unix seconds, as all times here."""
    error: JobErrorForm | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: Hyperparameters
    """What they came to be."""
    model: str
    organization_id: str
    """The project."""
    result_files: list[str] = Field(default=[])
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    """Targets of the loss, over all epochs; null until the job has succeeded."""
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: tuple[Integration, ...] | None
    metadata: dict[str, str] | None
    method: Method
    sleddog: dict[str, JsonValue]
    """Our own: `overrides` as sent, the job's `status` and `progress` as `/v1/jobs` tells them, `queue_position`."""


class OpenAIEvent(Resource):
    """An event in OpenAI's form."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, JsonValue]


class CheckpointMetrics(Resource):
    """What was measured at a checkpoint's step."""

    step: int
    train_loss: float | None = None
    """Nats per trained token, of this step."""
    full_valid_loss: float | None = None
    """Nats per token of the validation file, or else of the held-out conversations, where it was measured."""


class OpenAICheckpoint(Resource):
    """A checkpoint in OpenAI's form."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int


class OpenAIFile(Resource):
    """A dataset in OpenAI's form."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    expires_at: int | None = None


class Deleted(Resource):
    """Says that something is gone."""

    id: str
    object: Literal["file", "model"]
    deleted: Literal[True] = True


class OpenAIModel(Resource):
    """A model in OpenAI's form, with fields of our own."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix seconds; 0 for a preset."""
    owned_by: str
    kind: Literal["preset", "registered", "fine_tuned"]
    uri: str | None = None
    """Of the checkpoint; null for a preset, whose weights are random."""


Item = TypeVar("Item")


class OpenAIList(Resource, Generic[Item]):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = False
