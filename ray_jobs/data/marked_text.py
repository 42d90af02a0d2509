"""Tokens as text in which one sees what is trained: coloured in a terminal, between ⟦ and ⟧ elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from service.rows.chatml import END, START

OPEN, CLOSE = "⟦", "⟧"
_TRAINED, _SPECIAL = "green", "bold"
_LOOKALIKE = re.compile(f"{re.escape(START)}|{re.escape(END)}")
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """Text whose control characters, and marks that turn the direction of writing, are seen and do nothing."""
    return text.translate(_VISIBLE)


def wants_markers(console: Console) -> bool:
    """Whether colours would not show."""
    return console.color_system is None or console.no_color


class MarkedText:
    """Writes tokens of one tokenizer as text.

    Args:
        directory: of a Hugging Face tokenizer.
        plain: mark by characters, not by colours.
    """

    def __init__(self, directory: Path, *, plain: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        end = self._tokenizer.token_to_id(END)
        assert end is not None, "every tokenizer of prepared data has it"
        self._end, self._special = end, {self._tokenizer.token_to_id(START), end}
        self._plain = plain

    def write(self, tokens: np.ndarray, trained: np.ndarray) -> Text:
        """The tokens [T] in order, those that are trained [T] marked.

        ChatML's two tokens stand there as they are; text of a row that only looks like one has a backslash before it.
        """
        marked = Text()
        pairs = zip(tokens.tolist(), trained.tolist(), strict=True)
        for is_trained, run in groupby(pairs, key=lambda pair: pair[1]):
            ids = [token for token, _ in run]
            marked.append(OPEN if is_trained and self._plain else "")
            for is_special, part in groupby(ids, key=self._special.__contains__):
                style = " ".join([_TRAINED] * is_trained + [_SPECIAL] * is_special)
                text = printable(self._decode(list(part)))
                marked.append(text if is_special else _LOOKALIKE.sub(r"\\\g<0>", text), "" if self._plain else style)
            marked.append(CLOSE if is_trained and self._plain else "")
        return marked

    def _decode(self, ids: Sequence[int]) -> str:
        # behind another token, since some decoders take a space from the beginning of a text
        return str(self._tokenizer.decode([self._end, *ids], skip_special_tokens=False)).removeprefix(END)
