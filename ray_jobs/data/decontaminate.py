r"""Conversations that share text with a benchmark: n-gram overlap, exact.

A word is a run of letters, digits and underscores, lower-cased, so punctuation, comment signs and line breaks hide
nothing. A conversation is contaminated by a benchmark if one of its turns holds `ngram_words` words in a row that a
text of the benchmark holds, too: 13 by default, as GPT-3's data was cleaned (arXiv:2005.14165, appendix C). A benchmark
text of fewer words is matched whole: by a user's turn that consists of these words and no others. Elsewhere it would
match by chance, so a short answer of a benchmark matches nothing.

Only words of the benchmarks have numbers; what holds any other word cannot match. The n-grams left are hashed by one
integer product, looked up by binary search, and compared word number by word number: no collision drops a row. Words of
scripts without spaces are whole phrases here, which finds copies and little else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from service.rows.formats import Conversation

_WORD = re.compile(r"\w+")
_UNKNOWN = 0
"""Number of all words that no benchmark has; also stands between turns."""


def words_of(text: str) -> list[str]:
    """The words that are compared."""
    return _WORD.findall(text.lower())


class BenchmarkText(NamedTuple):
    """One text of a benchmark.

    Attributes:
        benchmark: its name.
        file: URL of the file.
        row: number of the row in it, from 1.
        text: to look for.
        is_prompt: whether it counts where it is too short for an n-gram.
    """

    benchmark: str
    file: str
    row: int
    text: str
    is_prompt: bool = True


class Overlap(NamedTuple):
    """Where a conversation meets a benchmark first.

    Attributes:
        benchmark: the benchmark's name.
        file, row: place of the benchmark's text.
        words: what both hold.
    """

    benchmark: str
    file: str
    row: int
    words: str


class NgramIndex:
    """All n-grams of some benchmarks.

    Args:
        texts: of the benchmarks.
        ngram_words: length of an n-gram.
    """

    def __init__(self, texts: Iterable[BenchmarkText], ngram_words: int) -> None:
        self._size = ngram_words
        self._multipliers = np.random.default_rng(1).integers(2**63, size=ngram_words, dtype=np.uint64) * 2 + 1
        self._numbers: dict[str, int] = {}
        self._places: list[BenchmarkText] = []
        self._short: dict[tuple[str, ...], list[Overlap]] = {}
        numbers: list[int] = []
        ends = []
        for text in texts:
            words = words_of(text.text)
            if len(words) >= ngram_words:
                numbers += [self._numbers.setdefault(word, len(self._numbers) + 1) for word in words]
                numbers.append(_UNKNOWN)
                ends.append(len(numbers))
                self._places.append(text._replace(text=""))
            elif words and text.is_prompt:
                self._short.setdefault(tuple(words), []).append(Overlap(*text[:3], " ".join(words)))
        self._words, self._ends = np.array(numbers, dtype=np.int32), np.array(ends)
        self._starts, self._hashes = self._distinct(*self._ngrams(self._words))

    @property
    def num_ngrams(self) -> int:
        """N-grams to look for; one that several benchmarks have counts for each."""
        return len(self._hashes)

    @property
    def num_short_texts(self) -> int:
        """Texts that are matched whole."""
        return sum(len(places) for places in self._short.values())

    def find(self, conversations: Sequence[Conversation]) -> list[list[Overlap]]:
        """Overlaps of each conversation, one for each benchmark that it meets: its first.

        Args:
            conversations: N of them; many at once are faster.
        """
        found: list[dict[str, Overlap]] = [{} for _ in conversations]
        words: list[str] = []
        ends = []
        for conversation, overlaps in zip(conversations, found, strict=True):
            for turn in conversation:
                mine = words_of(turn.content)
                if turn.role == "user" and len(mine) < self._size:
                    for overlap in self._short.get(tuple(mine), ()):
                        overlaps.setdefault(overlap.benchmark, overlap)
                words += [*mine, ""]
            ends.append(len(words))
        numbers = np.fromiter((self._numbers.get(word, _UNKNOWN) for word in words), np.int32, len(words))
        for start, place in self._verified(numbers):
            overlaps = found[int(np.searchsorted(ends, start, side="right"))]
            if place.benchmark not in overlaps:
                ngram = " ".join(words[start : start + self._size])
                overlaps[place.benchmark] = Overlap(*place[:3], ngram)
        return [list(overlaps.values()) for overlaps in found]

    def _ngrams(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts and hashes of all n-grams of known words, int64 [M] and uint64 [M], in order."""
        if len(numbers) < self._size:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        unknown = np.concatenate([[0], np.cumsum(numbers == _UNKNOWN)])
        starts = np.flatnonzero(unknown[self._size :] == unknown[: -self._size])
        return starts, self._windows(numbers, starts).astype(np.uint64) @ self._multipliers

    def _windows(self, numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        windows: np.ndarray = np.lib.stride_tricks.sliding_window_view(numbers, self._size)[starts]
        return windows

    def _distinct(self, starts: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first of equal n-grams of each benchmark, sorted by hash: a template of 10,000 rows is looked at once."""
        if not len(starts):
            return starts, hashes
        names = {name: number for number, name in enumerate(dict.fromkeys(place.benchmark for place in self._places))}
        benchmarks = np.array([names[place.benchmark] for place in self._places])[self._text_of(starts)]
        order = np.lexsort((benchmarks, hashes))
        starts, hashes, benchmarks = starts[order], hashes[order], benchmarks[order]
        windows = self._windows(self._words, starts)
        is_repeated = (benchmarks[1:] == benchmarks[:-1]) & (windows[1:] == windows[:-1]).all(axis=1)
        is_first = np.concatenate([[True], ~is_repeated])
        return starts[is_first], hashes[is_first]

    def _text_of(self, starts: np.ndarray) -> np.ndarray:
        texts: np.ndarray = np.searchsorted(self._ends, starts, side="right")
        return texts

    def _verified(self, numbers: np.ndarray) -> Iterator[tuple[int, BenchmarkText]]:
        """Start of every n-gram that a benchmark has, in order, and where it has it."""
        starts, hashes = self._ngrams(numbers)
        first, last = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        for hit in np.flatnonzero(last > first):
            start = int(starts[hit])
            ngram = numbers[start : start + self._size]
            for candidate in self._starts[first[hit] : last[hit]]:
                if (self._words[candidate : candidate + self._size] == ngram).all():
                    yield start, self._places[int(self._text_of(candidate))]
