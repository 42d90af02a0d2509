"""Whole Parquet files on any filesystem.

Names and bytes of prepared files follow from their content, so a task that runs twice, or two jobs that prepare the
same data at once, write the same file again. It appears by one rename, hence no reader sees a part of it, and none of
the writers has to know of the other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


def part_url(directory_url: str, file: int) -> str:
    """URL of a file's part."""
    return f"{directory_url}/part-{file:05d}.parquet"


@contextmanager
def parquet_writer(url: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer whose file appears when the block ends well, and never otherwise on a local filesystem.

    On object stores the upload's end makes the file appear; only a manifest written afterwards says that it is good.

    Args:
        url: of the file; its folders are made.
        schema: of all tables to write.
    """
    filesystem, path = url_to_fs(url)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    is_local = isinstance(filesystem, LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}.part" if is_local else path
    try:
        with filesystem.open(target, "wb") as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            yield writer
    except BaseException:
        if is_local:
            with suppress(FileNotFoundError):
                filesystem.rm_file(target)
        raise
    if is_local:
        filesystem.mv(target, path)


@contextmanager
def optional_parquet_writer(url: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """As `parquet_writer`, for a file that is there only if it has rows; gives the function that writes a table."""
    with ExitStack() as stack:
        writers: list[pq.ParquetWriter] = []

        def write(table: pa.Table) -> None:
            if table.num_rows and not writers:
                writers.append(stack.enter_context(parquet_writer(url, schema)))
            for writer in writers:
                writer.write_table(table)

        yield write


def read_parquet(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file whole.

    Args:
        url: of the file.
        columns: to read; None reads all.
    """
    filesystem, path = url_to_fs(url)
    with filesystem.open(path, "rb") as stream:
        return pq.read_table(stream, columns=columns)
