"""From a raw row to its conversation, several where it holds a tree of messages, or to the reason why there is none.

A conversation is a sequence of turns that ends with the assistant's. The system's turn comes first, a tool answers the
assistant, and neither user nor assistant speaks twice in a row; who begins is free. Text is brought to Unicode NFC, and
nothing else is changed: leading spaces matter in code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, get_args

from service.rows.message_tree import BrokenTreeError, MessageTree
from service.spec.source import (
    ColumnsForm,
    MessageFields,
    NamedForm,
    Role,
    RowForm,
    TreeForm,
    TurnsForm,
    template_parts,
)

MAX_CHARS = 4 * 2**20
"""Of a row's conversations, about a million tokens: eight times the longest packed row. What is longer is other data;
and the threads of one tree, which repeat what they share, cannot fill the memory."""
ROLES: tuple[str, ...] = get_args(Role)

_COMMON_FORMS: dict[NamedForm, ColumnsForm | TurnsForm] = {
    "messages": TurnsForm(kind="turns", turns="messages"),
    "sharegpt": TurnsForm.model_validate(
        {
            "kind": "turns",
            "turns": "conversations",
            "role": "from",
            "content": "value",
            "roles": {role: role for role in ROLES} | {"human": "user", "gpt": "assistant", "chatgpt": "assistant"},
        }
    ),
    "prompt_completion": ColumnsForm(kind="columns", prompt="prompt", completion="completion"),
}
_ALPACA_COLUMNS = ("instruction", "input", "output", "response")


class Turn(NamedTuple):
    """One message."""

    role: str
    content: str


Conversation = tuple[Turn, ...]


class NotAConversationError(ValueError):
    """Why a row is no conversation."""


class RowReader:
    """Reads the rows of one source.

    Args:
        form: how a row holds its conversation.
        replace: literal text to replace in every turn.
    """

    def __init__(self, form: RowForm, replace: Mapping[str, str] | None = None) -> None:
        self._form = _COMMON_FORMS[form] if isinstance(form, str) and form in _COMMON_FORMS else form
        self._replace = replace or {}
        longest_first = sorted(self._replace, key=len, reverse=True)
        self._replaced = re.compile("|".join(map(re.escape, longest_first))) if replace else None

    @property
    def columns(self) -> tuple[str, ...]:
        """All that is looked at."""
        if isinstance(self._form, TurnsForm):
            return (self._form.turns,)
        if isinstance(self._form, TreeForm):
            return (self._form.root,)
        if not isinstance(self._form, ColumnsForm):
            return _ALPACA_COLUMNS
        parts = template_parts(self._form.prompt) + template_parts(self._form.completion) + [("", self._form.system)]
        return tuple(dict.fromkeys(column for _, column in parts if column is not None))

    def read(self, row: Any) -> list[Conversation]:
        """The conversations of a row, whatever the order and number of their turns.

        Args:
            row: a decoded JSON object, CSV line or Parquet record.

        Returns:
            One; or of a tree any number, none if that is what the form leaves out.

        Raises:
            NotAConversationError: it has none in this form, or more text than `MAX_CHARS`; with the reason, in a few
                words.
        """
        if not isinstance(row, Mapping):
            raise NotAConversationError(f"not an object but {type(row).__name__}")
        if isinstance(self._form, TreeForm):
            return _bounded(self._tree(row, self._form))
        if isinstance(self._form, TurnsForm):
            return _bounded([self._list(row, self._form)])
        if isinstance(self._form, ColumnsForm):
            return _bounded([self._columns(row, self._form)])
        return _bounded([self._alpaca(row)])

    def _content(self, row: Mapping[str, Any], field: str) -> str:
        text = _text(row, field)
        if self._replaced is not None:
            text = self._replaced.sub(lambda match: self._replace[match.group()], text)
        return unicodedata.normalize("NFC", text)

    def _optional_text(self, row: Mapping[str, Any], field: str | None) -> str:
        return "" if field is None or row.get(field) is None else self._content(row, field)

    def _fill(self, row: Mapping[str, Any], template: str) -> str:
        return "".join(
            literal + ("" if column is None else self._content(row, column))
            for literal, column in template_parts(template)
        )

    def _columns(self, row: Mapping[str, Any], form: ColumnsForm) -> Conversation:
        system = self._optional_text(row, form.system)
        exchange = (_user(self._fill(row, form.prompt)), Turn("assistant", self._fill(row, form.completion)))
        return (Turn("system", system), *exchange) if system.strip() else exchange

    def _alpaca(self, row: Mapping[str, Any]) -> Conversation:
        instruction, extra = self._content(row, "instruction"), self._optional_text(row, "input")
        answer = self._content(row, "response" if row.get("output") is None and "response" in row else "output")
        prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
        return (_user(prompt), Turn("assistant", answer))

    def _list(self, row: Mapping[str, Any], form: TurnsForm) -> Conversation:
        messages = row.get(form.turns)
        if not isinstance(messages, list) or not messages:
            field = repr(form.turns)
            raise NotAConversationError(f"{field} is no list of turns" if form.turns in row else f"no field {field}")
        return self._turns(messages, form.turns, form)

    def _tree(self, row: Mapping[str, Any], form: TreeForm) -> Iterator[Conversation]:
        if form.root not in row:
            raise NotAConversationError(f"no field {form.root!r}")
        try:
            tree = MessageTree(row[form.root], form)
        except BrokenTreeError as error:
            raise NotAConversationError(str(error)) from None
        is_empty = True
        for thread in islice(tree.threads(), 1 if form.threads == "best" else None):
            is_empty = False
            yield self._turns(thread, "thread", form)
        if is_empty and not tree.is_cut:
            raise NotAConversationError("no assistant turn")

    def _turns(self, messages: Iterable[Any], place: str, form: MessageFields) -> Conversation:
        return tuple(self._turn(message, f"{place}[{number}]", form) for number, message in enumerate(messages))

    def _turn(self, message: Any, place: str, form: MessageFields) -> Turn:
        if not isinstance(message, Mapping):
            raise NotAConversationError(f"{place} is no object")
        try:
            speaker, content = _text(message, form.role), self._content(message, form.content)
        except NotAConversationError as error:
            raise NotAConversationError(f"{place}: {error}") from None
        if speaker not in form.roles:
            raise NotAConversationError(f"unknown role {speaker!r}")
        return Turn(form.roles[speaker], content)


def require_order(conversation: Conversation) -> None:
    """Require that a conversation is one: it ends with the assistant's turn, and its roles take their order.

    Raises:
        NotAConversationError: it is none, with the reason, in a few words.
    """
    _require_exchange(conversation)
    _require_roles(conversation)


def _bounded(conversations: Iterable[Conversation]) -> list[Conversation]:
    kept, size = [], 0
    for conversation in conversations:
        size += sum(len(turn.content) or 1 for turn in conversation)  # an empty turn needs memory, too
        if size > MAX_CHARS:
            raise NotAConversationError(f"{size:,} characters, more than {MAX_CHARS:,}")
        kept.append(conversation)
    return kept


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
    return value


def _user(prompt: str) -> Turn:
    if not prompt.strip():
        raise NotAConversationError("the prompt is empty")
    return Turn("user", prompt)


def _require_exchange(conversation: Conversation) -> None:
    if not any(turn.role == "assistant" for turn in conversation):
        raise NotAConversationError("no assistant turn")
    if conversation[-1].role != "assistant":
        raise NotAConversationError(f"the last turn is the {conversation[-1].role}'s, not the assistant's")
    if not conversation[-1].content.strip():
        raise NotAConversationError("the last assistant turn is empty")


def _require_roles(conversation: Conversation) -> None:
    before = None
    for number, (role, _) in enumerate(conversation, 1):
        if role == "system" and number > 1:
            raise NotAConversationError(f"turn {number} is the system's, which comes first")
        if role == "tool" and before not in ("assistant", "tool"):
            raise NotAConversationError(f"turn {number} is a tool's, and the assistant's is not before it")
        if role in ("user", "assistant") and role == before:
            raise NotAConversationError(f"turns {number - 1} and {number} are both the {role}'s")
        before = role
