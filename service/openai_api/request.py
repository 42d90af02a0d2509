"""From a request in OpenAI's form to the spec of a job. Pure; docs/guides/openai.md has the mapping as a table.

What the request says becomes a document of a spec, `sleddog` is laid over it, and the whole is validated as any spec
is; an error names the field that the user wrote.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from service.errors import InvalidSpecError
from service.openai_api.forms import FineTuningRequest, Hyperparameters
from service.spec.base import field_errors
from service.spec.data import DataSpec
from service.spec.job import JobSpec
from service.spec.train import TrainSpec

RECIPE_LEARNING_RATE: float = TrainSpec.model_fields["learning_rate"].default
_MAX_BATCH_ROWS: int = TrainSpec.model_fields["global_batch_rows"].default
_SEQUENCE_LENGTH: int = DataSpec.model_fields["sequence_length"].default
_BYTES_PER_TOKEN = 4
_AUTO_STEPS_AN_EPOCH = 50
"""That an automatic batch aims at: with 2 epochs 100 steps, 5 of them warm-up."""

_PARAM_OF = {
    "model": "model",
    "name": "suffix",
    "seed": "seed",
    "data.sources.0.uri": "training_file",
    "data.sources.1.uri": "validation_file",
    "train.epochs": "hyperparameters.n_epochs",
    "train.global_batch_rows": "hyperparameters.batch_size",
    "train.learning_rate": "hyperparameters.learning_rate_multiplier",
}


def hyperparameters_of(request: FineTuningRequest) -> Hyperparameters:
    """Those of the method, or those of the deprecated form.

    Raises:
        InvalidSpecError: both are given, and differ.
    """
    by_method = request.method.supervised.hyperparameters if request.method else None
    if by_method is not None and request.hyperparameters not in (None, by_method):
        raise InvalidSpecError("differ from those of `method`: give them there only", "hyperparameters")
    return by_method or request.hyperparameters or Hyperparameters()


def job_spec(request: FineTuningRequest, model: dict[str, Any], num_bytes: int) -> JobSpec:
    """The job that a request asks for.

    Args:
        request: as sent.
        model: what its `model` names, as a `ModelSpec`'s document.
        num_bytes: of the training file's content.

    Raises:
        InvalidSpecError: it is none; with the name of the request's field.
    """
    document = merged(_document(request, model), request.sleddog)
    if hyperparameters_of(request).batch_size == "auto":
        _set_default(document, "global_batch_rows", _auto_batch_rows(num_bytes, document))
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        fault = field_errors(error.errors(), document)[0]
        raise InvalidSpecError(fault.message, request_field(fault.field, request)) from None


def _document(request: FineTuningRequest, model: dict[str, Any]) -> dict[str, Any]:
    asked = hyperparameters_of(request)
    train: dict[str, Any] = {}
    if asked.n_epochs != "auto":
        train["epochs"] = asked.n_epochs
    if asked.batch_size != "auto":
        train["global_batch_rows"] = asked.batch_size
    if asked.learning_rate_multiplier != "auto":
        train["learning_rate"] = RECIPE_LEARNING_RATE * asked.learning_rate_multiplier
    document: dict[str, Any] = {
        "name": job_name(request.suffix),
        "model": model,
        "data": {"sources": _sources(request)},
        "train": train,
    }
    if request.seed is not None:
        document["seed"] = request.seed
    for integration in request.integrations or ():
        wandb = {"project": integration.wandb.project, "entity": integration.wandb.entity}
        document["track"] = {"wandb": wandb}
    return document


def _sources(request: FineTuningRequest) -> list[dict[str, Any]]:
    training: dict[str, Any] = {"name": "training", "category": "training", "form": "messages"}
    sources = [training | {"uri": f"dataset://{request.training_file}"}]
    if request.validation_file is not None:
        validation: dict[str, Any] = {
            "name": "validation",
            "category": "validation",
            "form": "messages",
            "hold_out": True,
        }
        sources.append(validation | {"uri": f"dataset://{request.validation_file}"})
    return sources


def job_name(suffix: str | None) -> str:
    """A job's name from a suffix: lower case, other characters as dashes, 40 at most."""
    name = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")[:40].strip("-")
    return name or "fine-tuning"


def merged(document: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A document with another laid over it: mappings field by field, all else as a whole."""
    result = dict(document)
    for name, value in overrides.items():
        before = result.get(name)
        result[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _set_default(document: dict[str, Any], name: str, value: int) -> None:
    train = document["train"]
    if isinstance(train, dict):
        train.setdefault(name, value)


def _auto_batch_rows(num_bytes: int, document: dict[str, Any]) -> int:
    """Rows of a batch that give some steps an epoch: a power of 2 times what the workers take at once.

    Args:
        num_bytes: of the training file's content, taken for 4 a token.
        document: of the job; where it is not as it should be, its validation says so.
    """
    length = _number(document.get("data"), "sequence_length", _SEQUENCE_LENGTH)
    workers = _number(document.get("parallel"), "num_workers", 1)
    at_once = workers * _number(document.get("train"), "micro_batch_rows", 1)
    num_rows = num_bytes / _BYTES_PER_TOKEN / length
    batch = at_once
    while 2 * batch <= min(_MAX_BATCH_ROWS, num_rows / _AUTO_STEPS_AN_EPOCH):
        batch *= 2
    return batch


def _number(holder: Any, name: str, default: int) -> int:
    value = holder.get(name, default) if isinstance(holder, dict) else default
    return value if isinstance(value, int) and value > 0 else default


def request_field(field: str, request: FineTuningRequest) -> str:
    """The field of a request that a spec's field comes from.

    Args:
        field: its path in the spec; one that is the request's already stays.
        request: as sent: what its `sleddog` says has that path below it.
    """
    if field in FineTuningRequest.model_fields or field.partition(".")[0] in ("sleddog", "hyperparameters"):
        return field
    holder: Any = request.sleddog
    for part in field.split("."):
        if not isinstance(holder, dict) or part not in holder:
            break
        holder = holder[part]
    else:
        return f"sleddog.{field}"
    return _PARAM_OF.get(field) or ("model" if field.startswith("model.base") else f"sleddog.{field}")
