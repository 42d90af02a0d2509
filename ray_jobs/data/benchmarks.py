"""Reading evaluation sets, to remove from the data what overlaps with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ray_jobs.data.decontaminate import BenchmarkText
from service.errors import BadRowError
from service.rows.formats import NotAConversationError, RowReader
from service.rows.raw_rows import RawRow, read_rows
from service.rows.sources import SourceFile, files_of
from service.spec.data import DecontaminateSpec
from service.spec.source import BenchmarkSpec, TextsForm

FIELD = "data.decontaminate.against"
"""Path of the list of benchmarks in the spec."""


def find_benchmark_files(spec: DecontaminateSpec | None) -> list[SourceFile]:
    """All files of all benchmarks, in order of benchmark and name.

    Raises:
        SleddogError: as `find_files`.
    """
    against = spec.against if spec is not None else ()
    return [file for index, benchmark in enumerate(against) for file in files_of(benchmark, index, f"{FIELD}.{index}")]


def benchmark_texts(spec: DecontaminateSpec, files: list[SourceFile]) -> Iterator[BenchmarkText]:
    """All texts of all benchmarks, in order.

    Args:
        spec: says how their rows hold them.
        files: of `find_benchmark_files`.

    Raises:
        BadRowError: a row has no text; half a benchmark would look like a clean one.
    """
    for file in files:
        benchmark = spec.against[file.source]
        columns, texts_of = _reader(benchmark)
        for row in read_rows(file, columns):
            try:
                texts = texts_of(_value(row))
            except NotAConversationError as error:
                reason = f"{file.url} row {row.number}: {error}"
                raise BadRowError(reason, f"{FIELD}.{file.source}.uri") from None
            for text, is_prompt in texts:
                yield BenchmarkText(benchmark.name, file.url, row.number, text, is_prompt)


def _value(row: RawRow) -> Any:
    if row.reason is not None:
        raise NotAConversationError(row.reason)
    return row.value


def _reader(benchmark: BenchmarkSpec) -> tuple[tuple[str, ...], Callable[[Any], list[tuple[str, bool]]]]:
    """Columns to read, and what gives a row's texts, each with whether it is a prompt."""
    form = benchmark.form
    if isinstance(form, TextsForm):
        return form.columns, lambda row: [(text, True) for column in form.columns for text in _texts(row, column)]
    reader = RowReader(form)
    return reader.columns, lambda row: [
        (turn.content, turn.role != "assistant") for conversation in reader.read(row) for turn in conversation
    ]


def _texts(row: Any, column: str) -> list[str]:
    value = row.get(column) if isinstance(row, dict) else None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise NotAConversationError(f"{column!r} is neither text nor a list of texts")
    return texts
