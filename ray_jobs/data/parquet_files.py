"""Whole files on any filesystem, Parquet files above all.

Names and bytes of prepared files follow from their content, so a task that runs twice, or two jobs that prepare the
same data at once, write the same file again. It appears by one rename, hence no reader sees a part of it, and none of
the writers has to know of the other.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


def part_url(directory_url: str, file: int) -> str:
    """URL of a file's part."""
    return f"{directory_url}/part-{file:05d}.parquet"


class HashingSink:
    """Passes on what is written to a file.

    Args:
        file: to write to.

    Attributes:
        num_bytes: passed on so far.
        closed: never; the file's owner closes it.
    """

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes | memoryview) -> int:
        """Write some bytes."""
        self._hash.update(content)
        self.num_bytes += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Nothing to do before the file is closed."""

    def tell(self) -> int:
        """Where the next byte goes."""
        return self.num_bytes

    @property
    def sha256(self) -> str:
        """Of all that was written, in hexadecimal digits."""
        return self._hash.hexdigest()


@contextmanager
def whole_file(url: str) -> Iterator[HashingSink]:
    """A file that appears when the block ends well, and never otherwise on a local filesystem.

    On object stores the upload's end makes the file appear: one that is killed leaves nothing, and what an error cuts
    short is removed at once.

    Args:
        url: of the file; its folders are made.
    """
    filesystem, path = url_to_fs(url)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    is_local = isinstance(filesystem, LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}.part" if is_local else path
    try:
        with filesystem.open(target, "wb") as file:
            yield HashingSink(file)
            if is_local:  # a later run may take the file's name for a sign that it is whole
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        with suppress(FileNotFoundError):  # closing it has made an object appear that is not whole
            filesystem.rm_file(target)
        raise
    if is_local:
        filesystem.mv(target, path)


@contextmanager
def parquet_writer(url: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of a `whole_file`.

    Args:
        url: of the file; its folders are made.
        schema: of all tables to write.
    """
    with whole_file(url) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        yield writer


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


def read_row_groups(url: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read a file one row group at a time, in order.

    Args:
        url: of the file.
        columns: to read.
    """
    filesystem, path = url_to_fs(url)
    with filesystem.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, columns=columns)


class Lines(NamedTuple):
    """Where N lines lie in the parts of a directory.

    Attributes:
        file: int [N], number of the part, sorted.
        position: int64 [N], place in the part, sorted within the part.
    """

    file: np.ndarray
    position: np.ndarray

    def take(self, chosen: np.ndarray | slice) -> Lines:
        """Some of them, in the same order."""
        return Lines(self.file[chosen], self.position[chosen])


def read_lines(lines: Lines, directory_url: str) -> Iterator[pa.Table]:
    """Some lines of parts, in order; only the row groups that hold them are read, one at a time.

    Args:
        lines: to read.
        directory_url: of the parts.
    """
    for number in np.unique(lines.file).tolist():
        wanted = lines.position[slice(*np.searchsorted(lines.file, [number, number + 1]))]
        filesystem, path = url_to_fs(part_url(directory_url, number))
        with filesystem.open(path, "rb") as stream, pq.ParquetFile(stream) as part:
            sizes = [part.metadata.row_group(group).num_rows for group in range(part.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            borders = np.searchsorted(wanted, starts)
            for group in np.flatnonzero(np.diff(borders)).tolist():
                mine = wanted[borders[group] : borders[group + 1]]
                yield part.read_row_group(group).take(mine - starts[group])
