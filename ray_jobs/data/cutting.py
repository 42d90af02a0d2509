"""Where a conversation that is longer than a packed row is cut: at borders of turns, so that each piece is a whole one.

A cut by tokens alone would leave half an answer, trained as if it ended nowhere, or a question without one. Here a
piece ends with an assistant's turn, as every conversation does, and has at least one answer: an assistant's turn of
more tokens than its end. Lengths alone decide, so that the cut can be made after tokenisation, for any row length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.rows.formats import ROLES

_SYSTEM, _ASSISTANT, _TOOL = (ROLES.index(role) for role in ("system", "assistant", "tool"))


@dataclass(frozen=True)
class TurnBorders:
    """Where the n turns of one rendered conversation lie.

    Attributes:
        ends: [n]; tokens from the conversation's start to each turn's end, rising.
        roles: [n]; places in `formats.ROLES`.
        answers: [n]; trained tokens of each turn beside its end token, 0 for all but the assistant's.
    """

    ends: np.ndarray
    roles: np.ndarray
    answers: np.ndarray


class Piece(NamedTuple):
    """A part of a conversation: its first `head` tokens, then those from `start` on.

    Attributes:
        head: tokens of the system's turn, which leads every piece; 0 where nothing has to be repeated.
        start: where the rest begins.
        length: tokens in all, the head's included.
        trained: trained tokens in all.
    """

    head: int
    start: int
    length: int
    trained: int


class Pieces(NamedTuple):
    """What became of a conversation.

    Attributes:
        made: in order.
        num_too_long: exchanges that no row can take.
    """

    made: list[Piece]
    num_too_long: int


def truncate(turns: TurnBorders, row_length: int) -> Pieces:
    """Keep a conversation up to the last assistant's turn that fits.

    Args:
        turns: of a conversation longer than a row.
        row_length: tokens that fit.

    Returns:
        One piece; none if no answer is within the row, and then one exchange too long.
    """
    is_reply = turns.roles == _ASSISTANT
    fits = np.flatnonzero(is_reply & (turns.ends <= row_length) & (np.cumsum(turns.answers) > 0))
    if not len(fits):
        return Pieces([], 1)
    stop = int(fits[-1]) + 1
    return Pieces([Piece(0, 0, int(turns.ends[stop - 1]), _trained(turns, 0, stop))], 0)


def split(turns: TurnBorders, row_length: int) -> Pieces:
    """Cut a conversation into as few pieces as fit, each behind the conversation's system turn.

    An exchange, from behind one reply to the end of the next, is never cut, nor a reply from the tool's turn behind it.

    Args:
        turns: of a conversation longer than a row.
        row_length: tokens that fit.

    Returns:
        The pieces with an answer; exchanges that are too long are left out, and those around them not joined.
    """
    head = int(turns.ends[0]) if turns.roles[0] == _SYSTEM else 0
    runs: list[tuple[int, int]] = []
    num_too_long = 0
    for first, stop in _exchanges(turns):
        if head + _size(turns, first, stop) > row_length:
            num_too_long += 1
        elif runs and head + _size(turns, runs[-1][0], stop) <= row_length:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((first, stop))
    made = [
        Piece(head, _start(turns, first), head + _size(turns, first, stop), _trained(turns, first, stop))
        for first, stop in runs
        if turns.answers[first:stop].any()
    ]
    return Pieces(made, num_too_long)


def _exchanges(turns: TurnBorders) -> list[tuple[int, int]]:
    """First turn of each exchange, and the turn behind it; a leading system turn is in none."""
    before_tool = np.append(turns.roles[1:] == _TOOL, False)
    stops = (np.flatnonzero((turns.roles == _ASSISTANT) & ~before_tool) + 1).tolist()
    firsts = [int(turns.roles[0] == _SYSTEM), *stops]
    return list(zip(firsts, stops, strict=False))


def _start(turns: TurnBorders, turn: int) -> int:
    return int(turns.ends[turn - 1]) if turn else 0


def _size(turns: TurnBorders, first: int, stop: int) -> int:
    return int(turns.ends[stop - 1]) - _start(turns, first)


def _trained(turns: TurnBorders, first: int, stop: int) -> int:
    """Answers, and an end token for each of the assistant's turns."""
    return int(turns.answers[first:stop].sum() + (turns.roles[first:stop] == _ASSISTANT).sum())
