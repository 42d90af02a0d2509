"""Which model a job starts from, and which tokenizer it reads with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from moe.config import PRESETS
from service.spec.base import SpecModel, conflict


def _absolute(path: str) -> str:
    if not path.startswith("/") and "://" not in path:
        raise ValueError("not an absolute path; a relative one is resolved by the client, against the spec's file")
    return path


DirectoryPath = Annotated[str, AfterValidator(_absolute)]
"""Absolute path or URL of a directory, as every cluster node sees it."""


class PresetBase(SpecModel):
    """Random weights in the shape of a named architecture."""

    kind: Literal["preset"] = "preset"
    name: str
    """A preset of `moe.config.PRESETS`; its vocabulary size is replaced by the tokenizer's."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
        return name


class CheckpointBase(SpecModel):
    """A Hugging Face checkpoint of the Arctic architecture."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: DirectoryPath
    """Directory with `config.json` and safetensors, as every cluster node sees it."""


class TrainedTokenizer(SpecModel):
    """A byte-level BPE trained on the job's own deduplicated data."""

    kind: Literal["train_bpe"] = "train_bpe"
    vocab_size: int = Field(default=4096, ge=300, le=262_144)
    """Pieces, special ones included."""


class PretrainedTokenizer(SpecModel):
    """A Hugging Face tokenizer directory.

    The tokenizer has the tokens `<|im_start|>` and `<|im_end|>`, and a chat template that renders plain ChatML, or
    none. Other templates are not supported and refused.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: DirectoryPath
    """Directory with `tokenizer.json`, as every cluster node sees it."""


class ModelSpec(SpecModel):
    """The model to fine-tune."""

    base: Annotated[PresetBase | CheckpointBase, Field(discriminator="kind")]
    """Starting weights. A plain string is the path of a checkpoint."""
    tokenizer: Annotated[TrainedTokenizer | PretrainedTokenizer, Field(discriminator="kind")] | None = None
    """Tokenizer; by default the one that lies beside the base checkpoint."""

    @field_validator("base", mode="before")
    @classmethod
    def _path_shorthand(cls, base: object) -> object:
        return {"kind": "checkpoint", "path": base} if isinstance(base, str) else base

    @model_validator(mode="after")
    def _tokenizer_fits_base(self) -> ModelSpec:
        if isinstance(self.base, PresetBase) and self.tokenizer is None:
            raise conflict("tokenizer", "a preset has no tokenizer of its own: give one")
        if isinstance(self.base, CheckpointBase) and isinstance(self.tokenizer, TrainedTokenizer):
            raise conflict(
                "tokenizer.kind", "a checkpoint keeps its vocabulary: leave `tokenizer` out, or give its path"
            )
        return self
