"""JSON lists as a stream: the same rows as the whole text gives, in the memory of a few."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rows import json_list
from service.rows.json_list import BrokenListError, JsonList

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)


class Dripping(io.RawIOBase):
    """A stream that gives a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        self._content, self._size = io.BytesIO(content), size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._content.read(min(len(buffer), self._size))
        buffer[: len(content)] = content
        return len(content)


def elements(content: bytes, max_chars: int = 10_000, size: int = 7) -> list[Any]:
    rows = JsonList(io.BufferedReader(Dripping(content, size)), max_chars, (OSError,))
    assert rows.skip() == "["
    found = []
    while rows.peek() != "]":
        found.append(rows.element().value)
        if rows.peek() == ",":
            rows.skip()
    assert (rows.skip(), rows.peek()) == ("]", "")
    return found


@given(
    st.lists(VALUES, max_size=8),
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
    st.integers(1, 9),
    st.integers(1, 30),
)
@settings(max_examples=100, deadline=None, database=None)
def test_any_list_is_read_as_by_the_whole(
    values: list[Any], is_ascii: bool, indent: Any, size: int, piece_bytes: int
) -> None:
    content = json.dumps(values, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "PIECE_BYTES", piece_bytes)
        assert elements(content, size=size) == json.loads(content)


def test_what_python_writes_python_reads() -> None:
    values = [float("inf"), 2**200, "\ud83d", "😀", {"a": 1e400}]
    assert elements(b"\xef\xbb\xbf" + json.dumps(values).encode()) == values


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_number_is_whole_wherever_a_piece_ends(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_list, "PIECE_BYTES", 4)
    assert elements(b"[123456789, -1.5e-7,0]", size=size) == [123456789, -1.5e-7, 0]


def test_an_element_may_be_as_long_as_allowed_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_list, "PIECE_BYTES", 16)
    content = json.dumps(["x" * 98, "y" * 98]).encode()
    assert [len(value) for value in elements(content, max_chars=100)] == [98, 98]
    with pytest.raises(BrokenListError, match="in 99 characters and more"):
        elements(content, max_chars=99)


def test_memory_is_that_of_the_longest_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_list, "PIECE_BYTES", 2**12)
    longest = 2**16
    lengths = [100] * 10_000 + [longest] + [100] * 10_000
    content = b"[" + b",".join(b'{"text":"' + b"x" * length + b'"}' for length in lengths) + b"]"
    # the value and its text, the window that was found too short, its double, and a piece to decode
    bound = 2 * longest + 3 * longest + 4 * json_list.PIECE_BYTES
    assert len(content) > 6 * bound
    rows = JsonList(io.BufferedReader(io.BytesIO(content)), 2 * longest, ())  # type: ignore[arg-type]
    num_chars = 0
    tracemalloc.start()
    try:
        while rows.skip() != "]":
            num_chars += len(rows.element().value["text"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_chars == sum(lengths)
    assert peak < bound
