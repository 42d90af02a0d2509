"""Models that have names: what is asked and answered about checkpoints that a project registers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, field_validator

from moe.config import PRESETS
from service.spec.base import SpecModel
from service.spec.model import DirectoryPath
from service.spec.resources import Resource


class NewModel(SpecModel):
    """A checkpoint to be registered."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """What jobs call it; no preset's name."""
    uri: DirectoryPath
    """Directory of a Hugging Face checkpoint of the Arctic architecture, as every cluster node sees it."""

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in PRESETS:
            raise ValueError(f"{name!r} is a preset's name")
        return name


class RegisteredModel(Resource):
    """A checkpoint with a name."""

    name: str
    uri: str
    created_at: datetime
