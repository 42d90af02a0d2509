"""Files as a stream of bytes, decompressed by their name's extension, and what stops a decompression bomb.

gzip, bzip2 and xz are the standard library's, Zstandard is Arrow's. Archives of several files (zip, tar) are not read:
one of a single file would be, and of several all but the first would be lost in silence.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import Any

import pyarrow as pa

MAX_EXPANSION = 200
"""Times its compressed size that a file may decompress to. Instruction data comes to 3 to 10, rows that repeat a
template to 50 and more; a bomb begins near 1000, the most that gzip can do."""
EXPANSION_FREE_BYTES = 64 * 2**20
"""Decompressed bytes that are no matter at any ratio."""


class ExpansionError(OSError):
    """A file holds far more than its size lets expect."""


class FileBytes(io.RawIOBase):
    """A file as its filesystem gives it.

    Attributes:
        error: the filesystem's error, to be told from an error of the content; None when there was none.
        num_bytes: read so far.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None
        self.num_bytes = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        try:
            content = self._file.read(len(buffer))
        except Exception as error:
            self.error = error
            raise
        buffer[: len(content)] = content
        self.num_bytes += len(content)
        return len(content)


class _Decompressed(io.RawIOBase):
    """What a decompressor gives, watched for its size."""

    def __init__(self, stream: Any, compressed: FileBytes) -> None:
        self._stream, self._compressed = stream, compressed
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read1(len(buffer))  # what came before a tear is not lost
        buffer[: len(content)] = content
        self._num_bytes += len(content)
        require_expansion(self._num_bytes, self._compressed.num_bytes)
        return len(content)


def require_expansion(num_bytes: int, num_compressed_bytes: int) -> None:
    """Stop where a file has expanded too far.

    Raises:
        ExpansionError: it has.
    """
    if num_bytes > max(EXPANSION_FREE_BYTES, MAX_EXPANSION * num_compressed_bytes):
        raise ExpansionError(f"{num_compressed_bytes:,} bytes expand to {num_bytes:,} and more")


def _zstandard(stream: Any) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    "gz": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zst": _zstandard,
}
COMPRESSIONS = tuple(_DECOMPRESSORS)
"""File extensions."""


def decompressed(file: FileBytes, name: str) -> io.BufferedReader[io.RawIOBase]:
    """The content of a file; seekable only where it is not compressed.

    Args:
        file: to read.
        name: whose extension tells the compression.
    """
    decompressor = _DECOMPRESSORS.get(name.lower().rpartition(".")[2])
    stream: io.BufferedReader[io.RawIOBase] = io.BufferedReader(file)
    return stream if decompressor is None else io.BufferedReader(_Decompressed(decompressor(stream), file))
