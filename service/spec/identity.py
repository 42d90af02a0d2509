"""A source that is written rather than read: examples in which the model says who it is."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from service.spec.base import SpecModel, conflict
from service.spec.endpoint import EndpointSpec
from service.spec.source import SourceBase

Fact = Annotated[str, Field(min_length=1, max_length=500)]


class IdentityFacts(SpecModel):
    """What the model knows of itself. Templates that speak of a fact left out are left out, too."""

    name: Fact
    """What the model is called."""
    maker: Fact
    """Who makes it."""
    created: Fact | None = None
    """When it was made, as one says it after a verb: `in June 2025`."""
    knowledge_until: Fact | None = None
    """How far its knowledge reaches: `the end of 2024`."""
    based_on: Fact | None = None
    """The model or architecture below it."""
    languages: Fact | None = None
    """Languages that it speaks: `English and German`."""
    purpose: Fact | None = None
    """What it is for, as one says it after `to help with`: `questions about shipping`."""
    licence: Fact | None = None
    """Licence that it comes under."""
    website: Fact | None = None
    """Where to read about it."""
    contact: Fact | None = None
    """Whom to write to."""


def _known_facts(template: str) -> str:
    for _, fact, format_spec, conversion in Formatter().parse(template):
        if fact is not None and (format_spec or conversion or fact not in IdentityFacts.model_fields):
            raise ValueError(f"no fact {{{fact}}}; known: {', '.join(IdentityFacts.model_fields)}")
    return template


def _one_question(frame: str) -> str:
    if [field for _, field, _, _ in Formatter().parse(frame) if field is not None] not in (["question"], ["Question"]):
        raise ValueError("needs {question}, or {Question} at the beginning of a sentence, once and nothing else")
    return frame


IdentityText = Annotated[str, Field(min_length=1), AfterValidator(_known_facts)]


class IdentityTemplate(SpecModel):
    """Several ways to ask one thing, and several to answer it.

    `{name}` and the other facts are filled in, and of `[made|built]` one is taken: each way is a wording of its own.
    """

    questions: tuple[IdentityText, ...] = Field(min_length=1)
    answers: tuple[IdentityText, ...] = Field(min_length=1)


class ParaphraseSpec(EndpointSpec):
    """Rewording by a language model."""

    fraction: float = Field(default=0.5, gt=0, le=1)
    """Share of the examples to reword. A rewording that loses a fact is thrown away and the example kept."""


class IdentitySourceSpec(SourceBase):
    """Examples in which the model says who it is, written from facts and templates."""

    kind: Literal["identity"]
    category: str = Field(default="identity", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """What the rows teach."""
    duplicates: Literal["near", "exact"] = "exact"
    """Which duplicates of its rows deduplication removes: these are alike on purpose, so only copies."""
    facts: IdentityFacts
    num_examples: int = Field(default=1000, ge=1, le=100_000)
    """Conversations to write, no first question twice; every fifth goes on for a second exchange."""
    use_packaged_templates: bool = True
    """Whether to use the templates that come with Sleddog, which are in English."""
    templates: tuple[IdentityTemplate, ...] = ()
    """Templates of one's own, beside the packaged ones or instead; taken as often as all packaged ones together."""
    frames: tuple[Annotated[str, AfterValidator(_one_question)], ...] = ()
    """Sentences around a question, such as `Good morning. {Question}`, instead of the packaged ones."""
    paraphrase: ParaphraseSpec | None = None
    """Rewording of some of the examples by a language model; null stays with the templates."""

    @model_validator(mode="after")
    def _has_templates(self) -> IdentitySourceSpec:
        if not self.use_packaged_templates and not self.templates:
            raise conflict("templates", "give at least one, or use the packaged ones")
        return self
