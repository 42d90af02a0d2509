"""What is taken out of the data row by row, for its owner to read: malformed, contaminated, or of no use in a row.

    corpus-<hash>/rejected/part-<file>.parquet        source, file, row, thread, reason, excerpt
    corpus-<hash>/contaminated/part-<file>.parquet    source, file, row, thread, benchmark and its file and row, words
                                                      that both hold
    packed-<hash>/unfit.parquet                       source, file, row, thread, reason, tokens

The thread is 1, or one of several in a row that holds a tree of messages.

A source file from which nothing was taken has no part, so a directory is read as a whole by any Parquet reader. What
does not fit depends on the row length, hence it lies with the packed rows; its files are named without their folders,
for where the data lies is not part of what is packed. Duplicates have their receipt (`ray_jobs.data.duplicates`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ray_jobs.data.decontaminate import Overlap
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_parquet
from service.rows.normalise import Row

REJECTED, CONTAMINATED = "rejected", "contaminated"
"""Directories of a corpus."""
UNFIT_FILE = "unfit.parquet"
"""Of packed data."""
_MAX_ROWS_SHOWN, _MAX_REASONS_SHOWN = 20, 50

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
UNFIT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("thread", pa.int32()),
        ("reason", pa.string()),
        ("tokens", pa.int64()),
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


def reasons_of_rejected(directory_url: str, files: Sequence[int]) -> list[dict[str, Any]]:
    """How many rows of each source were rejected for each reason: `source`, `reason`, `rows`, the 50 most frequent.

    Args:
        directory_url: of the parts.
        files: numbers of those that are there, in order.
    """
    rows: Counter[tuple[str, str]] = Counter()
    for file in files:
        part = read_parquet(part_url(directory_url, file), ["source", "reason"])
        rows.update(zip(part["source"].to_pylist(), part["reason"].to_pylist(), strict=True))
    most = rows.most_common(_MAX_REASONS_SHOWN)
    return [{"source": source, "reason": reason, "rows": count} for (source, reason), count in most]


def write_unfit(url: str, table: pa.Table) -> list[dict[str, Any]]:
    """Write the list of conversations that are in no row; returns its first lines, at most 20.

    Args:
        url: of the packed data.
        table: of `UNFIT_SCHEMA`.
    """
    with parquet_writer(f"{url}/{UNFIT_FILE}", UNFIT_SCHEMA) as writer:
        writer.write_table(table)
    lines: list[dict[str, Any]] = table.slice(0, _MAX_ROWS_SHOWN).to_pylist()
    return lines
