"""Rows of a file as conversations, or with the reason why they are none and a piece to look at; each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ray_jobs.data.formats import MAX_CHARS, Conversation, NotAConversationError, RowReader, Turn
from ray_jobs.data.raw_rows import RawRow

_MAX_BATCH_CHARS = 4 * MAX_CHARS
_MAX_REASON_CHARS = 200
_MAX_EXCERPT_CHARS = 500


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        number: from 1.
        conversation: empty when it is none.
        reason: why it is none, else None.
        excerpt: its beginning, if it is none.
    """

    number: int
    conversation: Conversation
    reason: str | None = None
    excerpt: str = ""


def normalised(rows: Iterable[RawRow], reader: RowReader) -> Iterator[Row]:
    """Each raw row, in order, as a conversation or with a reason.

    Args:
        rows: as read.
        reader: of the source's form.
    """
    for row in rows:
        if row.reason is not None:
            yield Row(row.number, (), row.reason, row.excerpt)
            continue
        try:
            yield Row(row.number, reader.read(row.value))
        except NotAConversationError as error:
            yield Row(row.number, (), str(error)[:_MAX_REASON_CHARS], _excerpt(row.value))


def _excerpt(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):  # nested to the limit, or with keys that JSON has none for
        text = str(type(value))
    return text[:_MAX_EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode()


def batches(rows: Iterable[Row], max_rows: int) -> Iterator[list[Row]]:
    """Rows in lists of at most `max_rows`, shorter ones where rows are long: bounds a task's memory."""
    batch: list[Row] = []
    num_chars = 0
    for row in rows:
        batch.append(row)
        num_chars += sum(len(turn.content) for turn in row.conversation)
        if len(batch) == max_rows or num_chars >= _MAX_BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def with_system_prompt(conversation: Conversation, prompt: str | None) -> Conversation:
    """The conversation behind a system prompt, unless it has one of its own or there is none to add."""
    if prompt is None or conversation[0].role == "system":
        return conversation
    return (Turn("system", prompt), *conversation)
