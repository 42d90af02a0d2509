"""Rows of a file as conversations, or with the reason why they are none and a piece to look at; each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from service.rows.formats import MAX_CHARS, Conversation, NotAConversationError, RowReader, Turn, require_order
from service.rows.raw_rows import RawRow

_MAX_BATCH_CHARS = 4 * MAX_CHARS
_MAX_REASON_CHARS = 200
_MAX_EXCERPT_CHARS = 500


class Row(NamedTuple):
    """One row of a file, or one thread of a row that holds a tree of messages.

    Attributes:
        number: of the row, from 1.
        conversation: empty when it is none.
        reason: why it is none, else None; None, too, for a row of which the source's form leaves all out.
        excerpt: the row's beginning, if there is a reason.
        thread: from 1; 1 in a row that holds no tree. Row and thread together name a conversation of a file.
        first: conversation of the row's thread 1.
    """

    number: int
    conversation: Conversation
    reason: str | None = None
    excerpt: str = ""
    thread: int = 1
    first: Conversation = ()


def normalised(rows: Iterable[RawRow], reader: RowReader) -> Iterator[Row]:
    """Each raw row, in order, as a conversation or with a reason; a tree of messages as its threads.

    Args:
        rows: as read.
        reader: of the source's form.

    Yields:
        At least one for each raw row, of which the first is thread 1.
    """
    for row in rows:
        if row.reason is not None:
            yield Row(row.number, (), row.reason, row.excerpt)
            continue
        try:
            conversations = reader.read(row.value)
        except NotAConversationError as error:
            yield _rejected(row, error)
            continue
        for thread, conversation in enumerate(conversations, 1):
            try:
                require_order(conversation)
            except NotAConversationError as error:
                yield _rejected(row, error, thread)
            else:
                yield Row(row.number, conversation, thread=thread, first=conversations[0])
        if not conversations:
            yield Row(row.number, ())


def _rejected(row: RawRow, error: NotAConversationError, thread: int = 1) -> Row:
    return Row(row.number, (), str(error)[:_MAX_REASON_CHARS], _excerpt(row.value), thread)


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
