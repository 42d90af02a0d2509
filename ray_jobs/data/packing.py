"""Packing whole documents into rows of fixed length: best-fit decreasing, over lengths alone.

Documents go in order of falling length, each into the row with the least room that still takes it, a new row if none
does. Rows are kept in stacks by their room, and the occupied rooms in the bits of integers, so the best fit is a shift
and a lowest set bit: O(L / 64) machine words a document, no search tree.

`packing.cpp` does it where a C++ compiler can be had, else `pack_in_python`: the same rows, about 7 times slower.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from moe.compiler import load_or_none

SOURCE = Path(__file__).with_name("packing.cpp")


@dataclass(frozen=True)
class Packing:
    """Which documents lie in which row.

    Attributes:
        documents: int64 [N], document numbers row by row, the longest of a row first.
        borders: int64 [rows + 1]; row r has `documents[borders[r]:borders[r + 1]]`.
    """

    documents: np.ndarray
    borders: np.ndarray

    def __len__(self) -> int:
        """Rows."""
        return len(self.borders) - 1

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """The documents of some rows."""
        borders = self.borders[start : stop + 1]
        return np.split(self.documents[borders[0] : borders[-1]], borders[1:-1] - borders[0]) if stop > start else []


def pack(lengths: np.ndarray, row_length: int) -> Packing:
    """Assign documents to rows.

    Args:
        lengths: tokens of N documents, each between 1 and `row_length`.
        row_length: tokens that fit a row.

    Returns:
        Deterministic: equal lengths keep their order.

    Raises:
        ValueError: a length is out of range.
    """
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= row_length):
        raise ValueError(f"lengths must be between 1 and {row_length}, are {lengths.min()} to {lengths.max()}")
    if (library := _library()) is None:
        return pack_in_python(lengths, row_length)
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    documents, borders = np.empty_like(lengths), np.empty(len(lengths) + 1, dtype=np.int64)
    num_rows = library.pack(lengths.ctypes, len(lengths), row_length, documents.ctypes, borders.ctypes)
    return Packing(documents, borders[: num_rows + 1].copy())


def pack_in_python(lengths: np.ndarray, row_length: int) -> Packing:
    """As `pack`."""
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
    documents = np.array([document for row in rows for document in row], dtype=np.int64)
    return Packing(documents, np.cumsum([0, *map(len, rows)]))


def lower_bound(lengths: np.ndarray, row_length: int) -> int:
    """Rows that no packing can do without: all tokens over the row length, rounded up."""
    return -(-int(lengths.sum()) // row_length)


@cache
def _library() -> ctypes.CDLL | None:
    library = load_or_none(SOURCE, "rows are packed in Python, about 7 times slower")
    if library is not None:
        library.pack.argtypes = [
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
        ]  # fmt: skip
        library.pack.restype = ctypes.c_int64
    return library
