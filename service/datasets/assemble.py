"""From the parts of an upload to one verified file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import IO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from service.datasets.storage import COPY_BYTES, pieces, whole_file
from service.errors import InvalidDatasetError
from service.rows.decompress import FileBytes, decompressed, require_expansion
from service.spec.source import FileFormat


def assemble(part_urls: Sequence[str], url: str, sha256: str) -> None:
    """Join parts to a file that appears only when its hash is right.

    Args:
        part_urls: in order.
        url: of the file.
        sha256: that it must have, in hex.

    Raises:
        InvalidDatasetError: it has another.
    """
    digest = hashlib.sha256()
    with whole_file(url) as file:
        for part_url in part_urls:
            with fsspec.open(part_url, "rb") as part:
                for piece in pieces(part):
                    digest.update(piece)
                    file.write(piece)
        if digest.hexdigest() != sha256:
            raise InvalidDatasetError(f"the parts together have SHA-256 {digest.hexdigest()}, not {sha256}", "sha256")


def measure(url: str, format: FileFormat, max_bytes: int) -> int:
    """What a file decompresses to, in bytes; for Parquet what its columns do.

    Raises:
        InvalidDatasetError: more than `max_bytes` or than its size lets expect; or it cannot be decompressed.
        OSError: the filesystem's own.
    """
    with fsspec.open(url, "rb") as opened:
        content = FileBytes(opened)
        try:
            stream = decompressed(content, url)
            size = _parquet_bytes(stream) if format == "parquet" else _stream_bytes(stream, max_bytes)
        except Exception as error:
            if content.error is not None:
                raise content.error from None
            raise InvalidDatasetError(f"the file cannot be read: {error}") from error
    if size > max_bytes:
        raise InvalidDatasetError(f"the file expands to more than {max_bytes:,} bytes")
    return size


def _stream_bytes(stream: IO[bytes], max_bytes: int) -> int:
    size = 0
    while size <= max_bytes and (piece := stream.read(COPY_BYTES)):
        size += len(piece)
    return size


def _parquet_bytes(stream: IO[bytes]) -> int:
    """From the footer, which a reader believes, too: nothing is decompressed. A compressed Parquet file is refused."""
    if not stream.seekable():
        raise pa.ArrowInvalid("a Parquet file is compressed within; upload it as it is")
    metadata = pq.read_metadata(stream)
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    size = int(sum(column.total_uncompressed_size for column in columns))
    require_expansion(size, sum(column.total_compressed_size for column in columns))
    return size
