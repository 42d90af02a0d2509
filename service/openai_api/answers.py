"""Jobs, events, checkpoints, datasets and models in OpenAI's form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import JsonValue

from service.openai_api.forms import (
    CheckpointMetrics,
    FineTuningRequest,
    Hyperparameters,
    JobErrorForm,
    Method,
    OpenAICheckpoint,
    OpenAIEvent,
    OpenAIFile,
    OpenAIJob,
    Supervised,
)
from service.openai_api.request import RECIPE_LEARNING_RATE, job_name, request_field
from service.spec.resources import Job, JobEvent, JobStatus
from service.store.datasets import StoredDataset

_STATUS: Mapping[JobStatus, Literal["queued", "running", "succeeded", "failed", "cancelled"]] = {
    "needs_approval": "queued",
    "queued": "queued",
    "submitting": "queued",
    "preempting": "running",
    "running": "running",
    "cancelling": "cancelled",  # it can end in no other way
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
}
_METRICS = {
    "step": "step",
    "total_steps": "total_steps",
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "tokens_per_s": "tokens_per_s",
    "balance_loss": "balance_loss",
}


def fine_tuned_name(job: Job, request: FineTuningRequest, project: str) -> str:
    """Id of the model that a job makes: its last part is the job's id."""
    suffix = job_name(request.suffix) if request.suffix else ""
    return f"ft:{request.model.partition(':')[2].partition(':')[0] or request.model}:{project}:{suffix}:{job.id}"


def openai_job(
    job: Job, request: FineTuningRequest, *, is_paused: bool, project: str, trained_tokens: int | None
) -> OpenAIJob:
    """A job.

    Args:
        job: as it stands.
        request: that it came by.
        is_paused: whether it is cancelled only to be resumed.
        project: its own.
        trained_tokens: targets of the loss so far.
    """
    train: Any = job.spec["train"]
    hyperparameters = Hyperparameters(
        n_epochs=train["epochs"],
        batch_size=train["global_batch_rows"],
        learning_rate_multiplier=round(train["learning_rate"] / RECIPE_LEARNING_RATE, 9),
    )
    is_done = job.status == "succeeded"
    return OpenAIJob(
        id=job.id,
        created_at=unix_seconds(job.created_at),
        error=_error(job, request),
        fine_tuned_model=fine_tuned_name(job, request, project) if is_done else None,
        finished_at=unix_seconds(job.finished_at) if job.finished_at else None,
        hyperparameters=hyperparameters,
        model=request.model,
        organization_id=project,
        seed=int(job.spec["seed"]),  # type: ignore[arg-type]
        status="paused" if is_paused and job.status in ("cancelling", "cancelled") else _STATUS[job.status],
        trained_tokens=trained_tokens if is_done else None,
        training_file=request.training_file,
        validation_file=request.validation_file,
        estimated_finish=_estimated_finish(job),
        integrations=request.integrations,
        metadata=request.metadata,
        method=Method(type="supervised", supervised=Supervised(hyperparameters=hyperparameters)),
        sleddog={
            "overrides": request.sleddog,
            "status": job.status,
            "progress": job.progress.model_dump(mode="json"),
            "queue_position": job.queue_position,
        },
    )


def _error(job: Job, request: FineTuningRequest) -> JobErrorForm | None:
    if job.error is None:
        return None
    field = job.error.field
    return JobErrorForm(
        code=job.error.code, message=job.error.message, param=request_field(field, request) if field else None
    )


def _estimated_finish(job: Job) -> int | None:
    if job.status != "running" or job.progress.stage != "train" or job.progress.eta_s is None:
        return None
    return unix_seconds(datetime.now(UTC) + timedelta(seconds=job.progress.eta_s))


def openai_event(job_id: str, event: JobEvent) -> OpenAIEvent:
    """An event: metrics of a step, or a message."""
    is_step = event.type == "train.step"
    levels: dict[str, Literal["warn", "error"]] = {"job.warning": "warn", "rows.skipped": "warn", "job.failed": "error"}
    data: dict[str, JsonValue] = dict(event.data)
    if is_step:
        data = {name: event.data[known] for known, name in _METRICS.items() if known in event.data}
    return OpenAIEvent(
        id=event_id(job_id, event.sequence),
        created_at=unix_seconds(event.time),
        level=levels.get(event.type, "info"),
        message=_message(event),
        type="metrics" if is_step else "message",
        data=data,
    )


def event_id(job_id: str, sequence: int) -> str:
    """Id of an event; `event_sequence` reads it."""
    return f"ftevent-{job_id}-{sequence}"


def event_sequence(event_id: str, job_id: str) -> int | None:
    """Sequence of a job's event; None when the id is none of it."""
    sequence = event_id.removeprefix(f"ftevent-{job_id}-")
    return int(sequence) if sequence.isascii() and sequence.isdecimal() and len(sequence) < 10 else None


def _message(event: JobEvent) -> str:
    if event.message:
        return event.message
    data = event.data
    if event.type == "train.step":
        return f"Step {data.get('step')}/{data.get('total_steps')}: training loss={data.get('loss')}"
    if event.type == "stage.progress":
        return f"{event.stage}: {data.get('task')}, {data.get('done')} of {data.get('total')} {data.get('unit')}"
    return f"{event.type} {event.stage}" if event.stage else event.type


def openai_checkpoint(
    model: str, job_id: str, saved: JobEvent, step: JobEvent | None, held_out: JobEvent | None
) -> OpenAICheckpoint:
    """A checkpoint.

    Args:
        model: id of the model that the job makes.
        job_id: of the job.
        saved: the event that tells of it.
        step: the event of its step's metrics.
        held_out: the event of the loss measured there.
    """
    number = int(saved.data["step"])  # type: ignore[arg-type]
    losses: Any = held_out.data.get("loss") if held_out else None
    return OpenAICheckpoint(
        id=checkpoint_id(job_id, number),
        created_at=unix_seconds(saved.time),
        fine_tuned_model_checkpoint=f"{model}:ckpt-step-{number}",
        fine_tuning_job_id=job_id,
        metrics=CheckpointMetrics(
            step=number,
            train_loss=step.data.get("loss") if step else None,  # type: ignore[arg-type]
            full_valid_loss=_valid_loss(losses) if losses else None,
        ),
        step_number=number,
    )


def _valid_loss(losses: dict[str, float]) -> float | None:
    """Of the validation file, if there is one; else of the one category that was held out from."""
    return losses.get("validation", losses.get("training"))


def checkpoint_id(job_id: str, step: int) -> str:
    """Id of a checkpoint."""
    return f"ftckpt-{job_id}-{step}"


def openai_file(dataset: StoredDataset) -> OpenAIFile:
    """A dataset as a file."""
    status: Literal["uploaded", "processed", "error"] = "uploaded"
    if dataset.status == "ready":
        status = "processed"
    elif dataset.status == "rejected":
        status = "error"
    return OpenAIFile(
        id=dataset.id,
        bytes=dataset.num_bytes,
        created_at=unix_seconds(dataset.created_at),
        filename=dataset.name,
        purpose=dataset.purpose or "fine-tune",
        status=status,
        status_details=dataset.error.message if dataset.error else None,
    )


def unix_seconds(time: datetime) -> int:
    """Whole seconds since 1970."""
    return int(time.timestamp())
