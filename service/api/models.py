"""`/v1/models`, in OpenAI's form: presets, registered checkpoints, and what fine-tuning jobs made."""

from __future__ import annotations

from fastapi import APIRouter, Response, status

from service.api.access import KeyedRoute, Member, Viewer
from service.api.dependencies import Parts
from service.api.openai_errors import OPENAI_PROBLEMS, openai_not_found
from service.api.runs import created, made_before
from service.openai_api.forms import Deleted, OpenAIList, OpenAIModel
from service.openai_api.models import find_model, list_models
from service.spec.registry import NewModel, RegisteredModel

_NOT_FOUND = openai_not_found("model")

router = APIRouter(prefix="/v1/models", tags=["models"], responses=OPENAI_PROBLEMS, route_class=KeyedRoute)


@router.post("", status_code=status.HTTP_201_CREATED, responses=made_before(RegisteredModel))
def register_model(new: NewModel, who: Member, parts: Parts, response: Response) -> RegisteredModel:
    """Give a checkpoint a name that jobs can call it by. Registering the same again changes nothing."""
    parts.uri_policy.require_allowed(new.model_dump())
    model, is_new = parts.store.of(who).register_model(new)
    return created(model, f"/v1/models/{model.name}", response, is_new=is_new)


@router.get("")
def get_models(who: Viewer, parts: Parts) -> OpenAIList[OpenAIModel]:
    """All models that a job can start from: presets, registered ones, and those that fine-tuning jobs made."""
    return OpenAIList(data=list_models(parts.store.of(who), who.project))


@router.get("/{model_id}", responses=_NOT_FOUND)
def get_model(model_id: str, who: Viewer, parts: Parts) -> OpenAIModel:
    """One model."""
    return find_model(parts.store.of(who), who.project, model_id)


@router.delete("/{model_id}", responses=_NOT_FOUND)
def delete_model(model_id: str, who: Member, parts: Parts) -> Deleted:
    """Forget a registered checkpoint's name; its files stay where they are."""
    parts.store.of(who).delete_model(model_id)
    return Deleted(id=model_id, object="model")
