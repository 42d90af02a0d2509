"""Trees of messages, each with the replies to it, and the threads they hold.

Open Assistant's data comes so: people wrote several replies to one message, and others ranked them. A thread goes from
the root to an answer, an assistant's message, behind which there is no other: what comes after the last answer could
not be trained on, and a thread that ends earlier is part of this one. Threads come in the order of a walk that takes
the best reply first, so the first is the best.

Open Assistant's own loader takes all threads, or those whose every answer is ranked high enough, and keeps a tree's
threads on one side of the split into training and validation
(https://github.com/LAION-AI/Open-Assistant/blob/main/model/model_training/custom_datasets/oasst_dataset.py); so does
`ray_jobs.data.prepare`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from service.spec.source import TreeForm

Message = Mapping[str, Any]


class BrokenTreeError(ValueError):
    """A message is not as the form says."""


class MessageTree:
    """One tree, without what the form leaves out.

    Args:
        root: the first message.
        form: where a message holds what.

    Attributes:
        is_cut: whether a message was left out.

    Raises:
        BrokenTreeError: a message is not as the form says, with the reason.
    """

    def __init__(self, root: object, form: TreeForm) -> None:
        self._form = form
        self.is_cut = False
        self._messages: list[Message] = []
        """Each before its replies, the best of them first."""
        self._parents: list[int] = []
        self._is_answer: list[bool] = []
        pending = [(_message(root), -1)]
        while pending:  # no recursion: a tree may be deep
            message, parent = pending.pop()
            if not self._is_taken(message):
                self.is_cut = True
                continue
            pending += [(reply, len(self._messages)) for reply in reversed(self._replies(message))]
            self._is_answer.append(form.roles.get(_text(message, form.role)) == "assistant")
            self._messages.append(message)
            self._parents.append(parent)

    def threads(self) -> Iterator[list[Message]]:
        """The messages of each thread, in order; the best thread first."""
        has_answer = [False] * len(self._messages)
        for number in range(len(self._messages) - 1, 0, -1):
            has_answer[self._parents[number]] |= self._is_answer[number] or has_answer[number]
        for number, is_answer in enumerate(self._is_answer):
            if is_answer and not has_answer[number]:
                yield self._thread(number)

    def _thread(self, number: int) -> list[Message]:
        thread = []
        while number >= 0:
            thread.append(self._messages[number])
            number = self._parents[number]
        return thread[::-1]

    def _is_taken(self, message: Message) -> bool:
        if any(message.get(field) == value for field, value in self._form.exclude.items()):
            return False
        return self._form.languages is None or _text(message, self._form.language) in self._form.languages

    def _replies(self, message: Message) -> list[Message]:
        """By rank, then as they stand."""
        replies = message.get(self._form.replies)
        if not isinstance(replies, list | None):
            raise BrokenTreeError(f"{self._form.replies!r} is no list of messages but {type(replies).__name__}")
        return sorted(map(_message, replies or []), key=self._rank)

    def _rank(self, message: Message) -> float:
        rank = message.get(self._form.rank)
        if rank is None or (isinstance(rank, float) and math.isnan(rank)):  # a table's missing number may be NaN
            return math.inf
        if not isinstance(rank, int | float) or isinstance(rank, bool):
            raise BrokenTreeError(f"{self._form.rank!r} is no number but {type(rank).__name__}")
        return rank


def _message(value: object) -> Message:
    if not isinstance(value, Mapping):
        raise BrokenTreeError(f"a message is no object but {type(value).__name__}")
    return value


def _text(message: Message, field: str) -> str:
    value = message.get(field)
    if not isinstance(value, str):
        raise BrokenTreeError(f"{field!r} of a message is not text but {type(value).__name__}")
    return value
