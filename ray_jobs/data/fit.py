"""The fit stage: which conversations become documents of a row's length at most, and what became of the others.

The tokenised parts say where turns end, so one corpus serves every row length and every `on_long_conversation`. Of what
is too long, a task a part reads these borders alone; the driver gets the pieces, four numbers each.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from ray_jobs.data.accounting import RowCounts
from ray_jobs.data.corpus_builder import FILE_NAMES, ProgressCallback
from ray_jobs.data.cutting import Pieces, TurnBorders, split, truncate
from ray_jobs.data.parquet_files import part_url, read_parquet
from ray_jobs.data.removed_rows import UNFIT_SCHEMA
from ray_jobs.data.tasks import TURN_COLUMNS

OUTCOMES = ("whole", "truncated", "split", "too_long", "no_trained_token")
"""What becomes of a conversation; the last two are not trained on. One of which no assistant's turn has a token beside
its end trains nothing: it would cost a place in a row and give no gradient but for that end."""
_WHOLE, _TRUNCATED, _SPLIT, _TOO_LONG, _NO_TRAINED_TOKEN = range(len(OUTCOMES))
_CUTS = {"truncate": (truncate, _TRUNCATED), "split": (split, _SPLIT)}


@dataclass(frozen=True)
class FittedDocuments:
    """D documents of N conversations, in the conversations' order.

    Attributes:
        conversation: int64 [D], its place in the index.
        pieces: int64 [D, 4], the fields of `cutting.Piece`.
        outcome: int64 [N], places in `OUTCOMES`.
        exchanges_too_long: int64 [N]; exchanges of a conversation that no row can take, where they were looked for.
    """

    conversation: np.ndarray
    pieces: np.ndarray
    outcome: np.ndarray
    exchanges_too_long: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """Conversations with a document."""
        return np.flatnonzero(self.outcome <= _SPLIT)

    def gone(self, source: np.ndarray) -> dict[str, RowCounts]:
        """Conversations without a document, by reason and source [N]."""
        return {
            OUTCOMES[code]: Counter(source[self.outcome == code].tolist()) for code in (_TOO_LONG, _NO_TRAINED_TOKEN)
        }

    def unfit(self, index: pa.Table, sources: list[str]) -> pa.Table:
        """Conversations without a document, one line each of `UNFIT_SCHEMA`, in order of source, file and row.

        Args:
            index: of the corpus.
            sources: names of all sources.
        """
        numbers = np.flatnonzero(self.outcome > _SPLIT)
        lines = index.take(pa.array(numbers))
        columns = [
            pa.array(sources, pa.string()).take(lines["source"]),
            pa.array(json.loads(index.schema.metadata[FILE_NAMES]), pa.string()).take(lines["file"]),
            lines["row"],
            lines["thread"],
            pa.array(OUTCOMES).take(pa.array(self.outcome[numbers])),
            lines["num_tokens"],
        ]
        return pa.table(columns, schema=UNFIT_SCHEMA)

    def describe(self, source: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        """By source [N]: conversations of each outcome, the pieces of the split ones, and exchanges too long."""
        is_piece = self.outcome[self.conversation] == _SPLIT
        return [
            {
                "name": name,
                **{
                    outcome: int((self.outcome[source == number] == code).sum())
                    for code, outcome in enumerate(OUTCOMES)
                },
                "pieces": int((is_piece & (source[self.conversation] == number)).sum()),
                "exchanges_too_long": int(self.exchanges_too_long[source == number].sum()),
            }
            for number, name in enumerate(names)
        ]


def fit(
    index: pa.Table,
    tokenised_url: str,
    row_length: int,
    on_long: Literal["drop", "truncate", "split"],
    progress: ProgressCallback,
) -> FittedDocuments:
    """Decide on every conversation; Ray is connected if one has to be cut.

    Args:
        index: of the corpus.
        tokenised_url: directory of its tokenised parts.
        row_length: tokens that fit a row.
        on_long: what to do with longer conversations.
        progress: told how many parts are cut.
    """
    num_tokens, num_answers = index["num_tokens"].to_numpy(), index["num_answer_tokens"].to_numpy()
    outcome = np.where(num_tokens > row_length, _TOO_LONG, _WHOLE)
    outcome[num_answers == 0] = _NO_TRAINED_TOKEN
    whole, long = np.flatnonzero(outcome == _WHOLE), np.flatnonzero(outcome == _TOO_LONG)
    trained = index["num_trained_tokens"].to_numpy()[whole]
    conversations, pieces = [whole], [np.stack([0 * whole, 0 * whole, num_tokens[whole], trained], axis=1)]
    too_long = np.zeros(len(outcome), dtype=np.int64)
    if on_long != "drop":
        cuts = _cut(index.take(long), tokenised_url, row_length, on_long, progress)
        for number, cut in zip(long, cuts, strict=True):
            too_long[number] = cut.num_too_long
            if cut.made:
                outcome[number] = _CUTS[on_long][1]
                conversations.append(np.full(len(cut.made), number))
                pieces.append(np.array(cut.made))
    conversation = np.concatenate(conversations)
    order = np.argsort(conversation, kind="stable")
    return FittedDocuments(conversation[order], np.concatenate(pieces)[order], outcome, too_long)


def _cut(long: pa.Table, tokenised_url: str, row_length: int, on_long: str, progress: ProgressCallback) -> list[Pieces]:
    """Pieces of each line of an index, which is sorted by file: one task a part."""
    positions = long["position"].to_numpy()
    parts, first = np.unique(long["file"].to_numpy(), return_index=True)
    pending = [
        _cut_task.remote(part_url(tokenised_url, part), positions[start:stop], row_length, on_long)
        for part, (start, stop) in zip(parts.tolist(), pairwise([*first, len(positions)]), strict=True)
    ]
    cuts: list[Pieces] = []
    for done, result in enumerate(pending, 1):
        cuts += ray.get(result)
        progress("fit", done, len(pending), "parts")
    return cuts


def cut_part(url: str, positions: np.ndarray, row_length: int, on_long: str) -> list[Pieces]:
    """Cut some conversations of a tokenised part.

    Args:
        url: of the part.
        positions: of the conversations in it.
        row_length: tokens that fit.
        on_long: `truncate` or `split`.
    """
    cut, _ = _CUTS[on_long]
    borders = read_parquet(url, list(TURN_COLUMNS)).take(positions)
    columns = [borders[name] for name in TURN_COLUMNS]
    return [
        cut(TurnBorders(*(column[line].values.to_numpy() for column in columns)), row_length)
        for line in range(borders.num_rows)
    ]


_cut_task = ray.remote(cut_part)
