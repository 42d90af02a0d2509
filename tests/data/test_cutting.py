"""Cutting long conversations: whole turns, whole exchanges, nothing above a row, nothing that trains nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.cutting import Piece, Pieces, TurnBorders, split, truncate
from service.rows.formats import ROLES

OVERHEAD = 4
"""Tokens of a turn beside its content: start, role, end, line end."""


def borders(*turns: tuple[str, int]) -> TurnBorders:
    """Of turns of a role and tokens of content."""
    roles = np.array([ROLES.index(role) for role, _ in turns])
    sizes = np.array([size for _, size in turns])
    return TurnBorders(np.cumsum(sizes + OVERHEAD), roles, np.where(roles == ROLES.index("assistant"), sizes, 0))


CHAT = borders(("user", 6), ("assistant", 6), ("user", 6), ("assistant", 6), ("user", 6), ("assistant", 6))


def test_a_cut_is_behind_the_last_reply_that_fits() -> None:
    for row_length, kept in ((20, 20), (39, 20), (40, 40), (59, 40)):
        assert truncate(CHAT, row_length) == Pieces([Piece(0, 0, kept, 7 * kept // 20)], 0)
    assert truncate(CHAT, 19) == Pieces([], 1)


def test_a_cut_keeps_an_answer() -> None:
    silent = borders(("user", 6), ("assistant", 0), ("user", 6), ("assistant", 6), ("user", 90), ("assistant", 1))
    assert truncate(silent, 33) == Pieces([], 1), "its end token alone is within"
    assert truncate(silent, 34) == Pieces([Piece(0, 0, 34, 8)], 0)


def test_pieces_take_as_many_exchanges_as_fit() -> None:
    assert split(CHAT, 40).made == [Piece(0, 0, 40, 14), Piece(0, 40, 20, 7)]
    assert split(CHAT, 39).made == [Piece(0, 0, 20, 7), Piece(0, 20, 20, 7), Piece(0, 40, 20, 7)]


def test_the_system_turn_leads_every_piece() -> None:
    led = borders(("system", 1), ("user", 6), ("assistant", 6), ("user", 6), ("assistant", 6))
    assert split(led, 44).made == [Piece(5, 5, 25, 7), Piece(5, 25, 25, 7)]
    assert split(led, 24) == Pieces([], 2), "it needs room, too"


def test_an_exchange_that_no_row_takes_is_left_out_and_its_neighbours_are_not_joined() -> None:
    turns = borders(
        *[("user", 6), ("assistant", 6)] * 2, ("user", 90), ("assistant", 6), *[("user", 6), ("assistant", 6)]
    )
    assert split(turns, 60) == Pieces([Piece(0, 0, 40, 14), Piece(0, 144, 20, 7)], 1)


def test_a_tool_stays_with_the_call_that_it_answers() -> None:
    turns = borders(("user", 6), ("assistant", 6), ("tool", 6), ("assistant", 6), ("user", 6), ("assistant", 6))
    assert split(turns, 59).made == [Piece(0, 0, 40, 14), Piece(0, 40, 20, 7)]
    assert split(turns, 39) == Pieces([Piece(0, 40, 20, 7)], 1)
    assert truncate(turns, 39).made == [Piece(0, 0, 20, 7)], "a call is a reply, and what follows it is not needed"


def test_pieces_that_train_nothing_are_not_made() -> None:
    turns = borders(("user", 6), ("assistant", 0), ("user", 6), ("assistant", 6))
    assert split(turns, 20) == Pieces([Piece(0, 14, 20, 7)], 0)


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Of any order that `formats` accepts."""
    sizes = st.integers(0, 40)
    turns = [("system", draw(sizes))] if draw(st.booleans()) else []
    for number in range(draw(st.integers(1, 8))):
        if number or draw(st.booleans()):
            turns.append(("user", draw(sizes)))
        turns.append(("assistant", draw(sizes)))
        for _ in range(draw(st.integers(0, 2))):
            turns += [("tool", draw(sizes)), ("assistant", draw(sizes))]
    return turns


def taken(turns: list[tuple[str, int]], piece: Piece) -> list[int]:
    """Turns of a piece; fails where it cuts one."""
    starts = [0, *borders(*turns).ends.tolist()]
    whole = [
        number
        for number in range(len(turns))
        if piece.start <= starts[number] < piece.start + piece.length - piece.head
    ]
    assert starts[whole[0]] == piece.start
    assert starts[whole[-1] + 1] == piece.start + piece.length - piece.head
    if piece.head:
        assert piece.head == starts[1]
        assert 0 not in whole
        return [0, *whole]
    return whole


def check(turns: list[tuple[str, int]], piece: Piece, row_length: int) -> list[int]:
    numbers = taken(turns, piece)
    mine = [turns[number] for number in numbers]
    replies = [size for role, size in mine if role == "assistant"]
    assert piece.length == sum(size + OVERHEAD for _, size in mine) <= row_length
    assert piece.trained == sum(replies) + len(replies)
    assert any(replies)
    assert mine[-1][0] == "assistant"
    assert mine[0][0] != "tool"
    assert ("system" in dict(mine)) == (turns[0][0] == "system")
    return numbers


@settings(deadline=None)
@given(conversations(), st.integers(8, 300))
def test_any_conversation_is_cut_at_borders_and_as_late_as_can_be(
    turns: list[tuple[str, int]], row_length: int
) -> None:
    made, num_too_long = truncate(borders(*turns), row_length)
    possible = []
    for stop in range(1, len(turns) + 1):
        replies = [size for role, size in turns[:stop] if role == "assistant"]
        fits = sum(size + OVERHEAD for _, size in turns[:stop]) <= row_length
        if turns[stop - 1][0] == "assistant" and fits and any(replies):
            possible.append(list(range(stop)))
    assert [check(turns, piece, row_length) for piece in made] == possible[-1:]
    assert num_too_long == (not possible)


@settings(deadline=None)
@given(conversations(), st.integers(8, 300))
def test_any_conversation_is_split_into_pieces_that_share_no_turn_and_lose_none(
    turns: list[tuple[str, int]], row_length: int
) -> None:
    made, num_too_long = split(borders(*turns), row_length)
    pieces = [check(turns, piece, row_length) for piece in made]
    head = turns[0][1] + OVERHEAD if turns[0][0] == "system" else 0
    seen = [number for piece in pieces for number in piece if turns[number][0] != "system"]
    assert seen == sorted(set(seen))
    exchanges: list[list[int]] = [[]]
    for number in range(head > 0, len(turns)):
        if exchanges[-1] and turns[exchanges[-1][-1]][0] == "assistant" and turns[number][0] != "tool":
            exchanges.append([])
        exchanges[-1].append(number)
    sizes = [head + sum(turns[number][1] + OVERHEAD for number in exchange) for exchange in exchanges]
    assert num_too_long == sum(size > row_length for size in sizes)
    for exchange, size in zip(exchanges, sizes, strict=True):
        if size <= row_length and any(turns[number][1] for number in exchange if turns[number][0] == "assistant"):
            assert set(exchange) <= set(seen), "what fits and trains something is in a piece"
