"""Finding and reading raw files: JSONL, JSON, CSV and Parquet, compressed or not, on any filesystem of fsspec.

Rows are numbered from 1 as a person would count them: lines of a JSONL file, elements of a JSON list, records of a CSV
file below its header, records of a Parquet file. A row that cannot be decoded is reported in its place, never dropped;
a file that breaks off is reported at the first row that could not be read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.compression import compr
from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

from service.errors import InvalidSpecError, SourceNotFoundError
from service.spec.data import DataSpec, FileFormat, SourceSpec

_EXTENSIONS: dict[str, FileFormat] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "csv": "csv",
    "parquet": "parquet",
}
_COMPRESSIONS = ("gz", "bz2", "xz")
_NOT_JSON = (ValueError, RecursionError)
"""Broken syntax, bytes that are not UTF-8, and nesting too deep for the parser."""
_NO_VALUE = (ValueError, OverflowError, pa.ArrowException)
"""Bytes that are not UTF-8, and dates that Python has none for."""
_BROKEN_CONTENT = (*_NO_VALUE, OSError, csv.Error, lzma.LZMAError, zlib.error, EOFError)
"""What decompressors and decoders raise for a torn or mislabelled file."""
_PACKAGE_EXTRAS = {"s3": "s3", "gs": "gcs"}


class RawRow(NamedTuple):
    """One row as read.

    Attributes:
        number: from 1.
        value: decoded; None when it could not be.
        reason: why it could not be decoded, else None.
    """

    number: int
    value: Any
    reason: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        source: the source's place in the spec.
        url: with its scheme.
        format: of the content below any compression.
    """

    source: int
    url: str
    format: FileFormat


def find_files(data: DataSpec) -> list[SourceFile]:
    """All files of all sources, in order of source and name.

    Raises:
        SourceNotFoundError: a URI matches nothing.
        InvalidSpecError: a file's format is unknown, or its filesystem needs a package that is not installed.
    """
    return [file for index, source in enumerate(data.sources) for file in _files_of(index, source)]


def _files_of(index: int, source: SourceSpec) -> list[SourceFile]:
    field = f"data.sources.{index}.uri"
    try:
        filesystem, path = url_to_fs(source.uri)
    except ImportError as error:
        extra = _PACKAGE_EXTRAS.get(source.uri.partition(":")[0])
        hint = f"install sleddog[{extra}]" if extra else str(error)
        raise InvalidSpecError(f"this filesystem needs a package that is missing: {hint}", field) from error
    matches = [path] if filesystem.isfile(path) else sorted(filesystem.glob(path))
    paths = [match for match in matches if filesystem.isfile(match)]
    if not paths:
        raise SourceNotFoundError(f"no such file: {source.uri}", field)
    return [
        SourceFile(index, filesystem.unstrip_protocol(match), source.format or _format_of(match, index))
        for match in paths
    ]


def _format_of(path: str, index: int) -> FileFormat:
    extensions = path.rpartition("/")[2].lower().split(".")[1:]
    if extensions and extensions[-1] in _COMPRESSIONS:
        extensions.pop()
    known = _EXTENSIONS.get(extensions[-1]) if extensions else None
    if known is None:
        raise InvalidSpecError(f"cannot tell the format of {path} from its name", f"data.sources.{index}.format")
    return known


def digest(url: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with fsspec.open(url, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _FileBytes(io.RawIOBase):
    """A file as its filesystem gives it; keeps the filesystem's error, to be told from an error of the content."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except Exception as error:
            self.error = error
            raise
        buffer[: len(content)] = content
        return len(content)


def read_rows(file: SourceFile, fields: Sequence[str] | None = None) -> Iterator[RawRow]:
    """Read a file row by row; JSON lists are read whole, the others as a stream.

    Whatever is wrong with the content becomes a row with a reason; only the filesystem's own errors are raised.

    Args:
        file: to read.
        fields: that will be looked at; a Parquet file's other columns are left alone. None reads all.
    """
    number = 0
    with fsspec.open(file.url, "rb") as opened:
        content = _FileBytes(opened)
        try:
            with compr[infer_compression(file.url)](io.BufferedReader(content), mode="rb") as stream:
                rows = _read_parquet(stream, fields) if file.format == "parquet" else _READERS[file.format](stream)
                for row in rows:
                    number = row.number
                    yield row
        except _BROKEN_CONTENT as error:
            if content.error is not None:
                raise
            yield RawRow(number + 1, None, f"the file cannot be read from here on: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _read_jsonl(stream: Any) -> Iterator[RawRow]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield RawRow(number, json.loads(line))
        except _NOT_JSON as error:
            yield RawRow(number, None, f"not JSON: {_first_line(error)}")


def _read_json(stream: Any) -> Iterator[RawRow]:
    try:
        document = json.load(stream)
    except _NOT_JSON as error:
        yield RawRow(1, None, f"not JSON: {_first_line(error)}")
        return
    if not isinstance(document, list):
        yield RawRow(1, None, f"not a list of rows but {type(document).__name__}")
        return
    yield from (RawRow(number, value) for number, value in enumerate(document, 1))


def _read_csv(stream: Any) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than some answers
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, strict=True), 1):
            if None in row:
                yield RawRow(number, None, "more fields than the header has")
            else:
                yield RawRow(number, row)


def _read_parquet(stream: Any, fields: Sequence[str] | None) -> Iterator[RawRow]:
    number = 0
    for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024, columns=fields):
        for index in range(batch.num_rows):
            number += 1
            yield _record(number, batch, index)


def _record(number: int, batch: pa.RecordBatch, index: int) -> RawRow:
    try:
        values = [column[index].as_py() for column in batch.columns]
    except _NO_VALUE as error:
        return RawRow(number, None, f"a value cannot be decoded: {_first_line(error)}")
    return RawRow(number, dict(zip(batch.schema.names, values, strict=True)))


_READERS = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv}
