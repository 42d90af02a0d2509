"""Which data a job trains on, and what is done to it before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from service.spec.base import SpecModel, conflict
from service.spec.identity import IdentitySourceSpec
from service.spec.mixture import CategoryShare
from service.spec.source import BenchmarkSpec, SourceSpec


class DedupSpec(SpecModel):
    """Near-duplicate removal by MinHash over word shingles."""

    threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity at which two conversations count as one."""
    num_permutations: int = Field(default=128, ge=16, le=1024)
    """Length of a signature."""
    shingle_words: int = Field(default=5, ge=1, le=20)
    """Words in a shingle."""
    compare: Literal["conversation", "prompt"] = "conversation"
    """What is compared: all turns, or those that are not the assistant's, so that of one question one answer stays."""
    keep: Literal["longest_completion", "first_source"] = "longest_completion"
    """Which of a cluster of duplicates stays: the one with the most characters of replies, or the one whose source the
    spec names first; of several the earliest."""
    verify: Literal["exact", "estimate"] = "exact"
    """How pairs that share a band are compared: by all their shingles, or by their signatures, which reads no text and
    errs by up to 0.08 (two standard deviations at 128 permutations)."""


class DecontaminateSpec(SpecModel):
    """Removal of conversations that share text with an evaluation set."""

    ngram_words: int = Field(default=13, ge=5, le=50)
    """Words in a row that make an overlap, wherever they stand in a turn. A benchmark's text of fewer words is matched
    whole: by a user's turn that holds these words and no others. An assistant's text of fewer words matches nothing."""
    against: tuple[BenchmarkSpec, ...]
    """Evaluation sets; a malformed row in one stops the job."""

    @model_validator(mode="after")
    def _consistent(self) -> DecontaminateSpec:
        if not self.against:
            raise conflict("against", "give at least one")
        _require_unique([benchmark.name for benchmark in self.against], "against", "benchmarks")
        return self


def _require_unique(names: list[str], field: str, things: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise conflict(f"{field}.{index}.name", f"two {things} are named {name!r}")


def _source_tag(source: Any) -> str | None:
    return source.get("kind", "files") if isinstance(source, dict) else getattr(source, "kind", None)


Source = Annotated[
    Annotated[SourceSpec, Tag("files")] | Annotated[IdentitySourceSpec, Tag("identity")],
    Discriminator(_source_tag, "unknown_source", "unknown kind of source; known: files, identity"),
]


class DataSpec(SpecModel):
    """Raw data and the way to packed rows."""

    sources: tuple[Source, ...]
    """What to read."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """A malformed row stops the job, or is left out, counted and listed with its place and the reason. A row
    of more than 4,194,304 characters is malformed, too."""
    decontaminate: DecontaminateSpec | None = None
    """Removal of what overlaps with evaluation sets, before deduplication; null removes nothing."""
    dedup: DedupSpec | None = DedupSpec()
    """Deduplication; null keeps every row."""
    mixture: dict[str, CategoryShare] | None = None
    """Share per category: a number, or a mapping with a cap and repetition. The shares need not sum to 1, and
    the scarcest category sets the total. Null takes all there is, as often as the sources' `epochs` say."""
    mixture_by: Literal["tokens", "examples"] = "tokens"
    """What the mixture's shares and caps count."""
    leave_out: tuple[str, ...] = ()
    """Names of sources that are not trained on. All else stays as if they were: what is deduplicated against them, the
    tokenizer, and what is held out, theirs too."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Decides the held-out split, the mix and the packing; by default the job's."""
    expected_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")
    """Hash that the packed rows must be named by: the job ends before training when files, spec or versions give other
    rows. Null takes what comes."""
    sequence_length: int = Field(default=4096, ge=64, le=131_072)
    """Tokens in a packed row."""
    on_long_conversation: Literal["drop", "truncate", "split"] = "truncate"
    """A conversation above `sequence_length` is dropped; kept up to the last assistant turn that fits; or split between
    its exchanges into pieces that fit, each behind its system turn. An exchange that fits no row is dropped whichever
    is chosen. All of it is counted, by source."""
    held_out_fraction: float = Field(default=0.02, ge=0, lt=0.5)
    """Share of each category's conversations kept from training, to measure the loss on. Of a source with `hold_out`
    all are."""

    @field_validator("mixture", mode="before")
    @classmethod
    def _number_shorthand(cls, mixture: object) -> object:
        if not isinstance(mixture, dict):
            return mixture
        return {
            name: {"share": share} if isinstance(share, int | float) and not isinstance(share, bool) else share
            for name, share in mixture.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        if not self.sources:
            raise conflict("sources", "give at least one")
        _require_unique([source.name for source in self.sources], "sources", "sources")
        if self.mixture is not None:
            categories = {source.category for source in self.sources}
            if unknown := sorted(set(self.mixture) - categories):
                raise conflict(f"mixture.{unknown[0]}", "no source has this category")
            if missing := sorted(categories - set(self.mixture)):
                raise conflict(f"mixture.{missing[0]}", "missing: give every category of the sources a share")
            if not any(share.share for share in self.mixture.values()):
                raise conflict("mixture", "every share is 0")
        self._check_left_out()
        return self

    def _check_left_out(self) -> None:
        names = {source.name for source in self.sources}
        for number, name in enumerate(self.leave_out):
            if name not in names:
                raise conflict(f"leave_out.{number}", f"no source is named {name!r}")
        trained = [source for source in self.sources if source.name not in self.leave_out and not source.hold_out]
        if not trained:
            raise conflict("leave_out" if self.leave_out else "sources", "no source is left to train on")
        left = {source.category for source in trained}
        for category, share in (self.mixture or {}).items():
            if share.share and category not in left:
                raise conflict(f"mixture.{category}", "must be 0: all sources of the category are left or held out")
