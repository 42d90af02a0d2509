"""Packing whole documents into rows of fixed length: best-fit decreasing, over lengths alone.

Documents go in order of falling length, each into the row with the least room that still takes it, a new row if none
does. Rows are kept in lists by their room, and the occupied rooms in the bits of one integer, so the best fit is a
shift and a lowest set bit: O(L / 64) machine words a document, no search tree.
"""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Assign documents to rows.

    Args:
        lengths: tokens of N documents, each between 1 and `row_length`.
        row_length: tokens that fit a row.

    Returns:
        For each row the indices of its documents; the longest first. Deterministic: equal lengths keep their order.

    Raises:
        ValueError: a length is out of range.
    """
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= row_length):
        raise ValueError(f"lengths must be between 1 and {row_length}, are {lengths.min()} to {lengths.max()}")
    rows: list[list[int]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    occupied = 0
    order = np.argsort(-lengths, kind="stable")
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                occupied ^= 1 << room
            rows[row].append(document)
        else:
            room, row = row_length, len(rows)
            rows.append([document])
        if room > length:
            rows_by_room[room - length].append(row)
            occupied |= 1 << (room - length)
    return rows


def lower_bound(lengths: np.ndarray, row_length: int) -> int:
    """Rows that no packing can do without: all tokens over the row length, rounded up."""
    return -(-int(lengths.sum()) // row_length)
