"""What a run that was killed leaves for the next one to go on with.

A corpus directory is named by all that decides its content, so whatever lies there whole is right, whoever wrote it:

    <lines>/part-<file>.parquet   what a task on a file told the driver: its other parts are whole
    deduplicated.parquet          which rows are dropped, and what the manifest tells of that
    tokenizer.json                hashes of the tokenizer's files

Nothing of a file, a benchmark or a tokenizer that changed while it was read may appear so: it would be taken for what
the name says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pyarrow as pa
from fsspec.core import url_to_fs

from ray_jobs.data.dedup import Duplicates
from ray_jobs.data.lineage import directory_digests
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_parquet
from ray_jobs.run_directory import write_file
from service.rows.sources import digest

SHA256 = "sha256"
"""Column of a task's item: the hash that the file at its `url` must still have when it has been read."""
_TOLD = b"told"


class _FileChangedError(Exception):
    """A file is another than the one that was to be read."""


def resume_file(
    batch: pa.Table, function: Callable[..., Iterator[pa.Table]], lines_url: str, schema: pa.Schema, **kwargs: Any
) -> Iterator[pa.Table]:
    """Run a task on a file and keep its tables, or give the tables that are there.

    Args:
        batch: one line, the task's item; its `file` is the part's number.
        function: the task.
        lines_url: directory of the kept tables.
        schema: of the task's tables.
        **kwargs: the task's.

    Yields:
        The task's tables. They are not kept if the file does not have its hash afterwards.
    """
    [item] = batch.to_pylist()
    lines = part_url(lines_url, item["file"])
    if _exists(lines):
        yield read_parquet(lines)
        return
    with suppress(_FileChangedError), parquet_writer(lines, schema) as writer:
        for table in function(batch.drop_columns([SHA256]) if SHA256 in item else batch, **kwargs):
            writer.write_table(table)
            yield table
        if SHA256 in item and digest(item["url"]) != item[SHA256]:
            raise _FileChangedError


def missing_lines(lines_url: str, num_files: int) -> list[int]:
    """Numbers of the files whose tables were not kept."""
    return [number for number in range(num_files) if not _exists(part_url(lines_url, number))]


def read_duplicates(url: str) -> tuple[Duplicates, dict[str, Any]] | None:
    """What `keep_duplicates` kept; None if nothing."""
    if not _exists(url):
        return None
    table = read_parquet(url)
    columns = [table[field.name].to_numpy() for field in fields(Duplicates)]
    return Duplicates(*columns), json.loads(table.schema.metadata[_TOLD])


def keep_duplicates(url: str, duplicates: Duplicates, told: dict[str, Any]) -> None:
    """Keep what deduplication found.

    Args:
        url: of the file.
        duplicates: the rows.
        told: what the manifest tells of them.
    """
    table = pa.table({field.name: getattr(duplicates, field.name) for field in fields(Duplicates)})
    table = table.replace_schema_metadata({_TOLD: json.dumps(told, allow_nan=False)})
    with parquet_writer(url, table.schema) as writer:
        writer.write_table(table)


def is_tokenizer_whole(url: str) -> bool:
    """Whether a tokenizer directory is as `keep_tokenizer` found it."""
    filesystem, path = url_to_fs(_mark_url(url))
    return bool(filesystem.exists(path) and json.loads(filesystem.cat_file(path)) == directory_digests(url))


def keep_tokenizer(url: str) -> None:
    """Declare a tokenizer directory whole."""
    write_file(_mark_url(url), json.dumps(directory_digests(url)).encode())


def _mark_url(url: str) -> str:
    return f"{url}.json"


def _exists(url: str) -> bool:
    filesystem, path = url_to_fs(url)
    return bool(filesystem.exists(path))
