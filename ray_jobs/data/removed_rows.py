"""What is taken out of the data before deduplication, row by row, for its owner to read: malformed, or contaminated.

    rejected/part-<file>.parquet        source, file, row, thread, reason, excerpt
    contaminated/part-<file>.parquet    source, file, row, thread, benchmark and its file and row, words that both hold

The thread is 1, or one of several in a row that holds a tree of messages.

A source file from which nothing was taken has no part, so a directory is read as a whole by any Parquet reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ray_jobs.data.decontaminate import Overlap
from ray_jobs.data.normalise import Row
from ray_jobs.data.parquet_files import part_url, read_parquet

REJECTED, CONTAMINATED = "rejected", "contaminated"
"""Directories of a corpus."""
_MAX_ROWS_SHOWN = 20

REJECTED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("thread", pa.int32()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)
CONTAMINATED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("thread", pa.int32()),
        ("benchmark", pa.string()),
        ("benchmark_file", pa.string()),
        ("benchmark_row", pa.int64()),
        ("words", pa.string()),
    ]
)


def rejected_table(source: str, url: str, rows: Sequence[Row]) -> pa.Table:
    """Rows that are no conversation, as a table of `REJECTED_SCHEMA`.

    Args:
        source: the source's name.
        url: of the file.
        rows: with a reason each.
    """
    lines = [{**_place(source, url, row), "reason": row.reason, "excerpt": row.excerpt} for row in rows]
    return pa.Table.from_pylist(lines, schema=REJECTED_SCHEMA)


def contaminated_table(source: str, url: str, rows: Sequence[tuple[Row, list[Overlap]]]) -> pa.Table:
    """Rows that overlap with benchmarks, as a table of `CONTAMINATED_SCHEMA`: a line for each benchmark met.

    Args:
        source: the source's name.
        url: of the file.
        rows: with their overlaps.
    """
    lines = [
        {
            **_place(source, url, row),
            "benchmark": overlap.benchmark,
            "benchmark_file": overlap.file,
            "benchmark_row": overlap.row,
            "words": overlap.words,
        }
        for row, overlaps in rows
        for overlap in overlaps
    ]
    return pa.Table.from_pylist(lines, schema=CONTAMINATED_SCHEMA)


def _place(source: str, url: str, row: Row) -> dict[str, Any]:
    return {"source": source, "file": url, "row": row.number, "thread": row.thread}


def first_lines(directory_url: str, files: Sequence[int]) -> list[dict[str, Any]]:
    """The first lines of a directory's parts, at most 20.

    Args:
        directory_url: of the parts.
        files: numbers of those that are there, in order.
    """
    lines: list[dict[str, Any]] = []
    for file in files:
        part = read_parquet(part_url(directory_url, file))
        lines += part.slice(0, _MAX_ROWS_SHOWN - len(lines)).to_pylist()
        if len(lines) == _MAX_ROWS_SHOWN:
            break
    return lines


def rows_of_benchmarks(directory_url: str, files: Sequence[int]) -> Counter[str]:
    """How many rows each benchmark has cost; one that meets several counts for each.

    Args:
        directory_url: of the parts.
        files: numbers of those that are there.
    """
    rows: Counter[str] = Counter()
    for file in files:
        rows.update(read_parquet(part_url(directory_url, file), ["benchmark"])["benchmark"].to_pylist())
    return rows
