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


class CardSpec(SpecModel):
    """What the model card says that no run can know. The card tells the rest: data, training, measurements."""

    license: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    """Licence of the fine-tuned model, by its name on the Hugging Face Hub, such as `apache-2.0`, or `other`. Null is
    unknown, which the card says as `other`, named `unknown`."""
    license_name: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of a licence that the Hub does not know; with `license: other`."""
    license_link: str | None = Field(default=None, pattern=r"^(https://\S+|LICENSE(\.\w+)?)$")
    """Where that licence is found: a URL, or a file that is added to the checkpoint."""
    base_model: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """Name on the Hub of the model that `base` is, such as `Snowflake/snowflake-arctic-base`."""
    language: tuple[Annotated[str, Field(pattern=r"^([a-z]{2,3}|code|multilingual)$")], ...] = ()
    """Languages that the model was tuned for, as ISO 639 codes, `code` or `multilingual`."""
    description: str | None = Field(default=None, min_length=1, max_length=10_000)
    """What the model is for, in Markdown."""
    authors: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Who made it."""

    @model_validator(mode="after")
    def _license_is_named(self) -> CardSpec:
        if self.license == "other" and self.license_name is None:
            raise conflict("license_name", "missing: `other` says nothing by itself")
        for field in ("license_name", "license_link"):
            if self.license != "other" and getattr(self, field) is not None:
                raise conflict(field, "is only for `license: other`")
        return self


class ModelSpec(SpecModel):
    """The model to fine-tune."""

    base: Annotated[PresetBase | CheckpointBase, Field(discriminator="kind")]
    """Starting weights. A plain string is the path of a checkpoint."""
    tokenizer: Annotated[TrainedTokenizer | PretrainedTokenizer, Field(discriminator="kind")] | None = None
    """Tokenizer; by default the one that lies beside the base checkpoint."""
    card: CardSpec = CardSpec()
    """For the model card of the exported checkpoint."""

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
