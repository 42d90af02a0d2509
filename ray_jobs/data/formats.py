"""From a raw row to a conversation, or to the reason why it is none.

A conversation is a sequence of turns that ends with the assistant's. Text is brought to Unicode NFC, nothing else is
changed: leading spaces matter in code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from service.spec.data import RowForm

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


class Turn(NamedTuple):
    """One message."""

    role: str
    content: str


Conversation = tuple[Turn, ...]


class NotAConversationError(ValueError):
    """Why a row is no conversation."""


def to_conversation(row: Any, form: RowForm) -> Conversation:
    """Read a row.

    Args:
        row: a decoded JSON object, CSV line or Parquet record.
        form: how it holds its conversation.

    Raises:
        NotAConversationError: with the reason, in a few words.
    """
    if not isinstance(row, Mapping):
        raise NotAConversationError(f"not an object but {type(row).__name__}")
    conversation = _READERS[form](row)
    if not any(turn.role == "assistant" for turn in conversation):
        raise NotAConversationError("no assistant turn")
    if conversation[-1].role != "assistant":
        raise NotAConversationError(f"the last turn is the {conversation[-1].role}'s, not the assistant's")
    if not conversation[-1].content.strip():
        raise NotAConversationError("the last assistant turn is empty")
    return conversation


def _text(row: Mapping[str, Any], field: str) -> str:
    if field not in row:
        raise NotAConversationError(f"no field {field!r}")
    value = row[field]
    if not isinstance(value, str):
        raise NotAConversationError(f"{field!r} is not text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotAConversationError(f"{field!r} holds half a surrogate pair, which UTF-8 cannot write") from None
    return unicodedata.normalize("NFC", value)


def _turns(row: Mapping[str, Any], field: str, role_field: str, content_field: str) -> Conversation:
    messages = row.get(field)
    if not isinstance(messages, list) or not messages:
        raise NotAConversationError(f"{field!r} is no list of turns" if field in row else f"no field {field!r}")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise NotAConversationError(f"{field}[{number}] is no object")
        try:
            turns.append(Turn(_text(message, role_field), _text(message, content_field)))
        except NotAConversationError as error:
            raise NotAConversationError(f"{field}[{number}]: {error}") from None
    return tuple(turns)


def _messages(row: Mapping[str, Any]) -> Conversation:
    turns = _turns(row, "messages", "role", "content")
    if unknown := next((turn.role for turn in turns if turn.role not in ROLES), None):
        raise NotAConversationError(f"unknown role {unknown!r}")
    return turns


def _sharegpt(row: Mapping[str, Any]) -> Conversation:
    turns = _turns(row, "conversations", "from", "value")
    if unknown := next((turn.role for turn in turns if turn.role not in _SHAREGPT_ROLES), None):
        raise NotAConversationError(f"unknown speaker {unknown!r}")
    return tuple(Turn(_SHAREGPT_ROLES[turn.role], turn.content) for turn in turns)


def _prompt_completion(row: Mapping[str, Any]) -> Conversation:
    return (_user(_text(row, "prompt")), Turn("assistant", _text(row, "completion")))


def _alpaca(row: Mapping[str, Any]) -> Conversation:
    instruction = _text(row, "instruction")
    extra = _text(row, "input") if row.get("input") is not None else ""
    answer = _text(row, "response" if row.get("output") is None and "response" in row else "output")
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return (_user(prompt), Turn("assistant", answer))


def _user(prompt: str) -> Turn:
    if not prompt.strip():
        raise NotAConversationError("the prompt is empty")
    return Turn("user", prompt)


FIELDS: dict[RowForm, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output", "response"),
    "sharegpt": ("conversations",),
}
"""All that `to_conversation` looks at."""
_READERS: dict[RowForm, Callable[[Mapping[str, Any]], Conversation]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
