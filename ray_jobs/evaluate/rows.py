"""Reading a benchmark's file in its published format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import BadRowError, EmptyDataError
from service.rows.decompress import FileBytes, decompressed
from service.rows.raw_rows import RawRow, read_rows
from service.rows.sources import SourceFile, files_of
from service.spec.source import FileSet


class Row(BaseModel):
    """Base of all rows; what a task does not know is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyRow = TypeVar("AnyRow", bound=Row)


def read_questions(files: FileSet, limit: int | None, field: str, row_type: type[AnyRow]) -> list[AnyRow]:
    """The rows of a task's files, in order.

    Args:
        files: where they lie.
        limit: only the first so many; None for all.
        field: path of `files` in the job's spec, for errors.
        row_type: what a row must be.

    Raises:
        SourceNotFoundError: there is no such file.
        InvalidSpecError: the file's format or filesystem is not known.
        BadRowError: a row is of another kind; with file and row.
        EmptyDataError: there are no rows.
    """
    rows = ((file, row) for file in files_of(files, 0, field) for row in (_examples(file) or read_rows(file)))
    questions = [_checked(file, row, f"{field}.uri", row_type) for file, row in itertools.islice(rows, limit)]
    if not questions:
        raise EmptyDataError(f"no rows in {files.uri}", f"{field}.uri")
    return questions


def _checked(file: SourceFile, row: RawRow, field: str, row_type: type[AnyRow]) -> AnyRow:
    place = f"{file.url} row {row.number}"
    if row.reason is not None:
        raise BadRowError(f"{place}: {row.reason}", field)
    try:
        return row_type.model_validate(row.value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRowError(f"{place}: {where + ': ' if where else ''}{first['msg']}", field) from None


def _examples(file: SourceFile) -> Iterator[RawRow] | None:
    """The rows of BIG-bench's form of a JSON file, an object with a list `examples`; None of any other."""
    if file.format != "json":
        return None
    try:
        with fsspec.open(file.url, "rb") as opened:
            document: Any = json.load(decompressed(FileBytes(opened), file.url))
    except ValueError:  # whoever reads it as rows says what is wrong
        return None
    examples = document.get("examples") if isinstance(document, dict) else None
    return (RawRow(number, value) for number, value in enumerate(examples, 1)) if isinstance(examples, list) else None
