"""Reading raw files row by row: JSONL, JSON, CSV, TSV and Parquet.

Rows are numbered from 1 as a person would count them: lines of a JSONL file, elements of a JSON list, records of a CSV
or TSV file below its header, records of a Parquet file. A row that cannot be decoded is reported in its place, never
dropped; a file that breaks off is reported at the first row that could not be read.

A line of more than 32 MiB is not taken into memory: a JSONL file goes on behind it, a CSV file ends there. So does a
JSON list at an element of that size, or at one that is no JSON: nothing says where the next one begins.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from service.rows.decompress import FileBytes, decompressed, require_expansion
from service.rows.json_list import BrokenListError, JsonList
from service.rows.sources import SourceFile

MAX_LINE_BYTES = 32 * 2**20
"""Room for the largest conversation (`formats.MAX_CHARS`) with every character escaped."""
_EXCERPT_BYTES = 500
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""What a file in UTF-16 begins with, and in UTF-32 mostly."""
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not UTF-8."""
_NOT_JSON = (ValueError, RecursionError)
"""Broken syntax, bytes that are not UTF-8, and nesting too deep for the parser."""
_NO_VALUE = (ValueError, OverflowError, pa.ArrowException)
"""Bytes that are not UTF-8, and dates that Python has none for."""
_BROKEN_CONTENT = (*_NO_VALUE, OSError, csv.Error, lzma.LZMAError, zlib.error, EOFError)
"""What decompressors and decoders raise for a torn or mislabelled file."""


class RawRow(NamedTuple):
    """One row as read.

    Attributes:
        number: from 1.
        value: decoded; None when it could not be.
        reason: why it could not be decoded, else None.
        excerpt: the beginning of what could not be decoded, where there is something to show.
    """

    number: int
    value: Any
    reason: str | None = None
    excerpt: str = ""


def read_rows(file: SourceFile, fields: Sequence[str] | None = None) -> Iterator[RawRow]:
    """Read a file row by row, as a stream.

    Whatever is wrong with the content becomes a row with a reason; only the filesystem's own errors are raised.

    Args:
        file: to read.
        fields: that will be looked at; a Parquet file's other columns are left alone. None reads all.
    """
    number = 0
    with fsspec.open(file.url, "rb") as opened:
        content = FileBytes(opened)
        try:
            for row in _read(decompressed(content, file.url), file, fields):
                number = row.number
                yield row
        except _BROKEN_CONTENT as error:
            if content.error is not None:
                raise content.error from None
            yield RawRow(number + 1, None, f"the file cannot be read from here on: {_first_line(error)}")


def _read(stream: io.BufferedReader[io.RawIOBase], file: SourceFile, fields: Sequence[str] | None) -> Iterator[RawRow]:
    if file.format == "parquet":
        return _read_parquet(stream, fields)
    if stream.peek(2)[:2] in _UTF16:
        return iter([RawRow(1, None, "the file is in UTF-16 or UTF-32, not in UTF-8")])
    if file.format == "json":
        return _read_json(stream)
    return _read_jsonl(stream) if file.format == "jsonl" else _read_csv(stream, file)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _excerpt(content: bytes) -> str:
    return content[:_EXCERPT_BYTES].rstrip(b"\r\n").decode("utf-8", "backslashreplace")


def _text_excerpt(text: str) -> str:
    """Of text in which bytes that are not UTF-8 are escaped as `surrogateescape` does."""
    return _excerpt(text[:_EXCERPT_BYTES].encode("utf-8", "surrogateescape"))


def _read_jsonl(stream: io.BufferedReader[io.RawIOBase]) -> Iterator[RawRow]:
    for number in itertools.count(1):
        line = stream.readline(MAX_LINE_BYTES)
        if not line:
            return
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            yield RawRow(number, None, f"a line of {MAX_LINE_BYTES:,} bytes and more", _excerpt(line))
            while line and not line.endswith(b"\n"):
                line = stream.readline(io.DEFAULT_BUFFER_SIZE)
        elif line.strip():
            yield _json_row(number, line)


def _json_row(number: int, line: bytes) -> RawRow:
    try:
        return RawRow(number, json.loads(line.decode("utf-8-sig")))
    except _NOT_JSON as error:
        return RawRow(number, None, f"not JSON: {_first_line(error)}", _excerpt(line))


def _read_json(stream: io.BufferedReader[io.RawIOBase]) -> Iterator[RawRow]:
    rows = JsonList(stream, MAX_LINE_BYTES, _BROKEN_CONTENT)
    if rows.peek() != "[":
        hint = "; for an object a line say format: jsonl" if rows.peek() == "{" else ""
        yield RawRow(1, None, f"not a JSON list{hint}", _text_excerpt(rows.peek(_EXCERPT_BYTES)))
        return
    number, separator = 0, rows.skip()
    if rows.peek() == "]":
        separator = rows.skip()
    while separator in ("[", ","):
        number += 1
        try:
            row = rows.element()
        except BrokenListError as error:
            yield _broken_list(number, str(error).splitlines()[0], rows)
            return
        if _NOT_UTF8.search(row.text):
            yield RawRow(number, None, "not UTF-8", _text_excerpt(row.text))
        else:
            yield RawRow(number, row.value)
        separator = rows.skip()
    if not separator:
        yield _broken_list(number + 1, "the list is not closed", rows)
    elif separator != "]":
        yield _broken_list(number + 1, f"{separator!r} stands where a comma belongs", rows)
    elif rows.peek():
        yield _broken_list(number + 1, "text stands behind the list", rows)


def _broken_list(number: int, what: str, rows: JsonList) -> RawRow:
    reason = f"not JSON, and cannot be read from here on: {what}"
    return RawRow(number, None, reason, _text_excerpt(rows.peek(_EXCERPT_BYTES)))


def _read_csv(stream: io.BufferedReader[io.RawIOBase], file: SourceFile) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE_BYTES)  # the default of 128 KiB is less than some answers
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.format == "tsv" else {}
    lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    for number, row in enumerate(csv.DictReader(_lines(lines), file.header, strict=True, **options), 1):
        cells = [cell for cell in row.values() if isinstance(cell, str)]
        text = ",".join(cells)
        if None in row:
            yield RawRow(number, None, "more fields than the header has", _text_excerpt(text))
        elif _NOT_UTF8.search(text):
            yield RawRow(number, None, "not UTF-8", _text_excerpt(text))
        else:
            yield RawRow(number, row)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line of {MAX_LINE_BYTES:,} characters and more")
        yield line


def _read_parquet(stream: io.BufferedReader[io.RawIOBase], fields: Sequence[str] | None) -> Iterator[RawRow]:
    file = pq.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()))
    for group in (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)):
        columns = [group.column(index) for index in range(group.num_columns)]
        compressed, expanded = (
            sum(getattr(column, f"total_{kind}_size") for column in columns) for kind in ("compressed", "uncompressed")
        )
        require_expansion(expanded, compressed)
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=fields):
        for index in range(batch.num_rows):
            number += 1
            yield _record(number, batch, index)


def _record(number: int, batch: pa.RecordBatch, index: int) -> RawRow:
    try:
        values = [column[index].as_py() for column in batch.columns]
    except _NO_VALUE as error:
        return RawRow(number, None, f"a value cannot be decoded: {_first_line(error)}")
    return RawRow(number, dict(zip(batch.schema.names, values, strict=True)))
