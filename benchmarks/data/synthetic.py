"""Synthetic instruction data of any size: several sources, files and forms, with a known share of duplicates.

Text is real: short runs of words of the installed Python files and of Python's language reference, strung together, so
that a tokenizer finds in it what it finds elsewhere, and two examples have little in common. Lengths are lognormal, as
of instruction data. One in `COPY_EVERY` rows is an exact copy of an earlier one of its source, and one in
`EDIT_EVERY` a near copy: one word in 60 is replaced, which leaves a Jaccard similarity of word 5-grams of 0.7 or more.
The same Python, with the same packages, writes the same files.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

from dedup import pieces

COPY_EVERY, EDIT_EVERY = 33, 20
REPLACED_EVERY = 60
"""One word in so many of a near copy is new; each changes five shingles of n - 4: (n - 5 k - 4) / (n + 5 k - 4)."""
_MIN_WORDS, _MIN_EDITED_WORDS = 12, 48
_CODE_PIECES = 4000
_RUN_WORDS = (4, 13)
"""The fewest words of a run, and so many numbers of words there are."""
_RECENT_ROWS, _KEPT_EVERY = 2000, 7
"""Copies are made of one of so many earlier rows, of which one in so many is kept for it."""
_SIGMA = 0.95
_CHARS_PER_TOKEN, _CHARS_PER_WORD = 3.6, 7.0
"""What the text roughly has; only the mean length depends on them."""

Turns = list[tuple[str, str]]
"""Role and content of each."""


class SourceFiles(NamedTuple):
    """One source of the corpus."""

    name: str
    category: str
    form: str
    share: float
    num_files: int


SOURCES = (
    SourceFiles("chat", "general", "messages", 0.5, 6),
    SourceFiles("code", "code", "prompt_completion", 0.3, 4),
    SourceFiles("math", "math", "alpaca", 0.2, 2),
)


@dataclass
class Written:
    """What was written: rows, bytes, and how many of the rows are copies."""

    rows: int = 0
    num_bytes: int = 0
    exact_copies: int = 0
    near_copies: int = 0


def write_corpus(directory: Path, num_examples: int, tokens_per_example: int) -> Written:
    """Write all sources as JSON lines, or find that they are there.

    Args:
        directory: to write `<source>-<n>.jsonl` to.
        num_examples: rows of all sources together.
        tokens_per_example: their mean length, roughly.
    """
    record = directory / "written.json"
    if record.exists():
        return Written(**json.loads(record.read_text()))
    directory.mkdir(parents=True)
    written = Written()
    for source in SOURCES:
        _write_source(directory, source, round(num_examples * source.share), tokens_per_example, written)
    record.write_text(json.dumps(asdict(written)))
    return written


def _write_source(directory: Path, source: SourceFiles, num_rows: int, tokens_per_example: int, total: Written) -> None:
    rng = random.Random(source.name)  # noqa: S311  no secret
    make, text = _MAKERS[source.form], _Text(_STOCKS[source.category](), tokens_per_example, rng)
    sinks = [(directory / f"{source.name}-{number:02d}.jsonl").open("w") for number in range(source.num_files)]
    recent: list[Turns] = []
    for number in range(num_rows):
        turns = _row(number, text, recent, rng, total, is_chat=source.form == "messages")
        total.num_bytes += sinks[number % len(sinks)].write(json.dumps(make(turns)) + "\n")
    total.rows += num_rows
    for sink in sinks:
        sink.close()


def _row(number: int, text: _Text, recent: list[Turns], rng: random.Random, total: Written, *, is_chat: bool) -> Turns:
    """A new row, or a copy of one of the recent ones."""
    if recent and number % COPY_EVERY == 0:
        total.exact_copies += 1
        return rng.choice(recent)
    if recent and number % EDIT_EVERY == 0:
        total.near_copies += 1
        return _edited(rng.choice(recent), rng)
    turns = text.conversation(is_chat=is_chat)
    if number % _KEPT_EVERY == 1 and sum(len(content.split()) for _, content in turns) >= _MIN_EDITED_WORDS:
        if len(recent) < _RECENT_ROWS:
            recent.append(turns)
        else:
            recent[rng.randrange(_RECENT_ROWS)] = turns
    return turns


def _edited(turns: Turns, rng: random.Random) -> Turns:
    """A copy with a few words of the last turn replaced by new ones."""
    role, content = turns[-1]
    words = content.split(" ")
    num_words = sum(len(content.split()) for _, content in turns)
    for place in rng.sample(range(len(words)), min(len(words), max(1, num_words // REPLACED_EVERY))):
        words[place] = f"new{rng.randrange(10**9)}"
    return [*turns[:-1], (role, " ".join(words))]


class _Text:
    """Draws conversations from a stock of words, each with the white space that follows it."""

    def __init__(self, stock: list[str], tokens_per_example: int, rng: random.Random) -> None:
        self._stock, self._rng = stock, rng
        mean_words = tokens_per_example * _CHARS_PER_TOKEN / _CHARS_PER_WORD
        self._median_words = mean_words / 2.718281828 ** (_SIGMA**2 / 2)

    def conversation(self, *, is_chat: bool) -> Turns:
        """One exchange, or up to five of a chat, some behind a system turn."""
        num_words = max(_MIN_WORDS, int(self._median_words * self._rng.lognormvariate(0, _SIGMA)))
        num_exchanges = min(5, 1 + int(self._rng.expovariate(1)), num_words // _MIN_WORDS) if is_chat else 1
        turns: Turns = []
        if is_chat and self._rng.random() < 0.1:
            turns.append(("system", "You are a helpful assistant."))
        for _ in range(num_exchanges):
            asked = max(4, num_words // num_exchanges // 4)
            turns.append(("user", self._passage(asked)))
            turns.append(("assistant", self._passage(max(8, num_words // num_exchanges - asked))))
        return turns

    def _passage(self, num_words: int) -> str:
        runs: list[str] = []
        while num_words > 0:
            length = min(num_words, _RUN_WORDS[0] + int(self._rng.random() * _RUN_WORDS[1]))
            start = int(self._rng.random() * (len(self._stock) - length))
            runs += self._stock[start : start + length]
            num_words -= length
        return "".join(runs).strip()


def _reference() -> list[str]:
    """Words of Python's language reference."""
    return re.findall(r"\S+\s+", "\n".join(text for _, text in sorted(topics.items())))


def _code() -> list[str]:
    """Words of installed Python files."""
    return re.findall(r"\S+\s+", "\n".join(itertools.islice(pieces(), _CODE_PIECES)))


def _exercises() -> list[str]:
    """Sums, and the words of the reference between them."""
    rng = random.Random(0)  # noqa: S311  no secret
    words: list[str] = []
    for word in _reference():
        words.append(word)
        if rng.random() < 0.15:
            one, other = rng.randrange(1000), rng.randrange(1000)
            words += [f"{one} ", "+ ", f"{other} ", "= ", f"{one + other}.\n"]
    return words


_STOCKS: dict[str, Callable[[], list[str]]] = {"general": _reference, "code": _code, "math": _exercises}


def _messages(turns: Turns) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _prompt_completion(turns: Turns) -> dict[str, Any]:
    return {"prompt": turns[0][1], "completion": turns[1][1]}


def _alpaca(turns: Turns) -> dict[str, Any]:
    return {"instruction": turns[0][1], "input": "", "output": turns[1][1]}


_MAKERS: dict[str, Callable[[Turns], dict[str, Any]]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
}


def contents(row: dict[str, Any]) -> list[str]:
    """Contents of the turns of a row that was written here."""
    return [turn["content"] for turn in row["messages"]] if "messages" in row else list(row.values())
