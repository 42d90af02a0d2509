r"""A conversation as ChatML, Arctic's chat template: `<|im_start|>{role}\n{content}<|im_end|>\n` for each turn.

An assistant's content and its `<|im_end|>` are trained, all else is not. `ray_jobs.data.tokenise` makes the same of
tokens, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from service.rows.formats import Conversation

START, END = "<|im_start|>", "<|im_end|>"


class Segment(NamedTuple):
    """A piece of a rendered conversation; pieces take turns in whether they are trained."""

    text: str
    is_trained: bool


def segments(conversation: Conversation) -> Iterator[Segment]:
    """The conversation, rendered, cut where training begins and ends."""
    before = ""
    for turn in conversation:
        before += f"{START}{turn.role}\n"
        if turn.role == "assistant":
            yield Segment(before, is_trained=False)
            yield Segment(turn.content + END, is_trained=True)
            before = "\n"
        else:
            before += f"{turn.content}{END}\n"
    if before:
        yield Segment(before, is_trained=False)
