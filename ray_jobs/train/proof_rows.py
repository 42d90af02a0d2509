"""The few short rows that a run is proven on: pieces of its own next rows.

Two rows for each worker, so that they can be taken together, apart, or by another worker; of each the first documents,
and of each document some tokens around the first trained one. The pieces' lengths differ from row to row, and with them
the trained tokens: a loss normalised by the wrong count cannot come out right by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from ray_jobs.data.packed_rows import PackedRow, PackedRows
from ray_jobs.train.batches import RowOrder

ROWS_PER_WORKER = 2
_DOCUMENTS_PER_ROW = 4
_DOCUMENTS_PER_ROW = 4
_LONGEST_PIECE = 64
LONGEST_PROOF_ROW = _DOCUMENTS_PER_ROW * _LONGEST_PIECE


def proof_rows(
    rows: PackedRows | Sequence[PackedRow], order: RowOrder, step: int, num_workers: int
) -> list[PackedRow | None]:
    """Rows of the proofs, over all workers; None where the run has no further rows.

    Args:
        rows: the training set.
        order: of the run.
        step: the rows of this step come first.
        num_workers: of the group.
    """
    start, count = step * order.global_batch_rows, ROWS_PER_WORKER * num_workers
    taken = order.rows_between(start, start + count).tolist()
    pieces: list[PackedRow | None] = [shortened(rows[row], place) for place, row in enumerate(taken)]
    return pieces + [None] * (count - len(pieces))


def shortened(row: PackedRow, place: int) -> PackedRow:
    """At most four documents of a row, and of each at most 64, 56, 48 or 40 tokens, by the row's place."""
    longest = _LONGEST_PIECE - 8 * (place % 4)
    return joined([_piece(document, longest) for document in islice(documents_of(row), _DOCUMENTS_PER_ROW)])


def documents_of(row: PackedRow) -> list[PackedRow]:
    """Each document as a row of its own."""
    borders = np.cumsum(row.document_lengths)[:-1]
    parts = zip(np.split(row.tokens, borders), np.split(row.trained, borders), row.document_categories, strict=True)
    return [
        PackedRow(tokens, trained, np.array([len(tokens)], dtype=np.int32), (category,))
        for tokens, trained, category in parts
    ]


def joined(rows: Sequence[PackedRow]) -> PackedRow:
    """One row of all documents."""
    return PackedRow(
        np.concatenate([row.tokens for row in rows]),
        np.concatenate([row.trained for row in rows]),
        np.concatenate([row.document_lengths for row in rows]),
        tuple(category for row in rows for category in row.document_categories),
    )


def _piece(document: PackedRow, longest: int) -> PackedRow:
    start = max(0, int(document.trained.argmax()) - longest // 2)
    tokens, trained = (values[start : start + longest] for values in (document.tokens, document.trained))
    return PackedRow(tokens, trained, np.array([len(tokens)], dtype=np.int32), document.document_categories)
