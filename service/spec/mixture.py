"""What share of the training data each category gets."""

from __future__ import annotations

from pydantic import Field

from service.spec.base import SpecModel


class CategoryShare(SpecModel):
    """A category's part of the mix."""

    share: float = Field(ge=0)
    """Its share, relative to the other categories'; they need not sum to 1. At 0 nothing of it is trained on, and its
    held-out loss is measured all the same."""
    max_epochs: float = Field(default=1.0, ge=1, le=100)
    """How often a conversation of it may be taken within one epoch of training, where a source does not say. None is
    taken again before all were; 2.5 takes every one twice and half of them a third time. The category that is scarcest
    for its share, so repeated, sets the total."""
    cap: int | None = Field(default=None, ge=1)
    """At most this many tokens, or examples, as the mixture counts. A capped category falls short of its share; the
    others keep theirs among themselves."""
