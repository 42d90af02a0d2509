"""A JSON list read as a stream: a window of its text moves on from element to element.

The standard library's decoder takes each element, as it takes each line of a JSONL file, so a row is the same in both.
ijson was rejected. Without a word it makes half a surrogate pair a question mark; it stops at NaN and at integers of
more than 64 bits, which Python writes and reads; and one byte that is not UTF-8 costs it the rest of the file.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from typing import Any, NamedTuple

PIECE_BYTES = 2**18
"""Read at once, and the least size of the window."""
_DECODER = json.JSONDecoder()
_NOT_JSON = (ValueError, RecursionError)
_SPACE = re.compile(r"[ \t\n\r]*")


class Element(NamedTuple):
    """One element of a list.

    Attributes:
        value: decoded.
        text: of which it was decoded; what was not UTF-8 is in it as with Python's `surrogateescape`.
    """

    value: Any
    text: str


class BrokenListError(ValueError):
    """An element cannot be decoded, so that nobody knows where the next one begins."""


class JsonList:
    """The text of a JSON list, in order.

    Args:
        stream: its bytes.
        max_chars: of an element. No more than twice as many, and a piece of the stream, are in memory.
        broken: exceptions by which the stream says that its content is broken. They are raised when all that came
            before is read.
    """

    def __init__(
        self, stream: io.BufferedReader[io.RawIOBase], max_chars: int, broken: tuple[type[Exception], ...]
    ) -> None:
        self._stream, self._max_chars, self._broken = stream, max_chars, broken
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._window, self._place = "", 0
        self._is_at_end = False
        self._error: Exception | None = None

    def peek(self, num_chars: int = 1) -> str:
        """The next characters behind white space, without taking them; fewer at the window's end, none at the text's.

        Raises:
            Exception: one of `broken`.
        """
        while True:
            space = _SPACE.match(self._window, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._window):
                return self._window[self._place : self._place + num_chars]
            if not self._read_on():
                return ""

    def skip(self) -> str:
        """Take the next character behind white space."""
        character = self.peek()
        self._place += len(character)
        return character

    def element(self) -> Element:
        """Take an element.

        Raises:
            BrokenListError: there is none, with the reason.
            Exception: one of `broken`.
        """
        self.peek()
        while True:
            reason = "an element has no end"
            try:
                value, end = _DECODER.raw_decode(self._window, self._place)
            except _NOT_JSON as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if end - self._place <= self._max_chars and (self._is_at_end or not self._may_go_on(end)):
                    text, self._place = self._window[self._place : end], end
                    return Element(value, text)
            if len(self._window) - self._place > self._max_chars:
                raise BrokenListError(f"{reason}, in {self._max_chars:,} characters and more")
            if not self._read_on():
                raise BrokenListError(reason)

    def _may_go_on(self, end: int) -> bool:
        """Whether an element that seems to end there may be the beginning of a number."""
        return self._window[end : end + 1] in ("", ".", "e", "E")

    def _read_on(self) -> bool:
        """Drop what was taken, and double the rest of the window; False if all of the text is in it."""
        if self._error is not None:
            raise self._error
        if self._is_at_end:
            return False
        pieces = [self._window[self._place :]]
        num_chars = len(pieces[0])
        wanted = min(max(2 * num_chars, PIECE_BYTES), self._max_chars + 1)
        while num_chars < wanted and not self._is_at_end:
            pieces.append(self._read_piece())
            num_chars += len(pieces[-1])
        self._window, self._place = "".join(pieces), 0
        return True

    def _read_piece(self) -> str:
        content = b""
        try:
            content = self._stream.read1(PIECE_BYTES)
        except self._broken as error:
            self._error = error
        self._is_at_end = not content
        return self._decode(content, final=self._is_at_end)
