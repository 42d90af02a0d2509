"""What the id of a model means: a preset, a registered checkpoint, or what a fine-tuning job made."""

from __future__ import annotations

from typing import Any

from moe.config import PRESETS
from service.errors import NotFoundError
from service.openai_api.answers import fine_tuned_name, unix_seconds
from service.openai_api.forms import OpenAIModel
from service.run_reader import read_report
from service.store.store import Store

_MAX_LISTED = 1000


def find_model(store: Store, project: str, model_id: str) -> OpenAIModel:
    """A model that a job can start from.

    Args:
        store: of the project.
        project: its name.
        model_id: as `list_models` gives it.

    Raises:
        NotFoundError: there is none of this id.
    """
    if model_id in PRESETS:
        return OpenAIModel(id=model_id, created=0, owned_by="sleddog", kind="preset")
    if (registered := store.find_model(model_id)) is not None:
        created = unix_seconds(registered.created_at)
        return OpenAIModel(id=model_id, created=created, owned_by=project, kind="registered", uri=registered.uri)
    if model_id.startswith("ft:"):
        return _fine_tuned(store, project, model_id)
    raise _no_model(model_id)


def list_models(store: Store, project: str) -> list[OpenAIModel]:
    """Presets, registered checkpoints, and what the last 1000 fine-tuning jobs made; the latter without their URIs."""
    names = [*sorted(PRESETS), *(model.name for model in store.list_models())]
    jobs, _ = store.list_fine_tuning(statuses=["succeeded"], limit=_MAX_LISTED)
    made = [
        OpenAIModel(
            id=fine_tuned_name(job, request, project),
            created=unix_seconds(job.finished_at or job.created_at),
            owned_by=project,
            kind="fine_tuned",
        )
        for job, request, _ in jobs
    ]
    return [*(find_model(store, project, name) for name in names), *made]


def model_document(model: OpenAIModel) -> dict[str, Any]:
    """A model as a `ModelSpec`'s document; a preset, which has no tokenizer, trains one on the data."""
    if model.kind == "preset":
        return {"base": {"kind": "preset", "name": model.id}, "tokenizer": {"kind": "train_bpe"}}
    return {"base": {"kind": "checkpoint", "path": model.uri}}


def _fine_tuned(store: Store, project: str, model_id: str) -> OpenAIModel:
    try:
        job, request, _ = store.get_fine_tuning(model_id.rpartition(":")[2])
    except NotFoundError:
        raise _no_model(model_id) from None
    report = read_report(job.run_url) if job.status == "succeeded" else None
    if report is None or fine_tuned_name(job, request, project) != model_id:
        raise _no_model(model_id)
    created = unix_seconds(job.finished_at or job.created_at)
    path = report["export"]["path"]
    return OpenAIModel(id=model_id, created=created, owned_by=project, kind="fine_tuned", uri=path)


def _no_model(model_id: str) -> NotFoundError:
    return NotFoundError(f"there is no model {model_id!r}; /v1/models lists those there are", "model")
