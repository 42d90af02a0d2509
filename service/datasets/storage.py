"""The files of datasets, on any filesystem that fsspec knows, beside the run directories.

    <datasets>/<id>/parts/<sha256>      a part, named by its content: sending one again changes nothing
    <datasets>/<id>/content.<format>    the whole file, there once it is verified; the parts are gone then

No text of a user's is in a path. A file appears whole or not at all.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

COPY_BYTES = 2**20


def datasets_root(runs_url: str) -> str:
    """Where datasets lie: beside the root of the run directories, or in it where that is a whole bucket."""
    parent, _, name = runs_url.rstrip("/").rpartition("/")
    return f"{runs_url.rstrip('/')}/datasets" if not name or parent.endswith(("/", ":")) else f"{parent}/datasets"


class DatasetFiles:
    """Files of all datasets.

    Args:
        root: URL or absolute path of their directory.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def part_url(self, dataset_id: str, sha256: str) -> str:
        """Where a part lies."""
        return f"{self.root}/{dataset_id}/parts/{sha256}"

    def content_url(self, dataset_id: str, file_name: str) -> str:
        """Where the whole file lies."""
        return f"{self.root}/{dataset_id}/{file_name}"

    def write_part(self, dataset_id: str, sha256: str, content: IO[bytes]) -> None:
        """Keep a part."""
        with whole_file(self.part_url(dataset_id, sha256)) as file:
            for piece in pieces(content):
                file.write(piece)

    def remove_parts(self, dataset_id: str) -> None:
        """Remove the parts; without any, do nothing."""
        _remove(f"{self.root}/{dataset_id}/parts")

    def remove(self, dataset_id: str) -> None:
        """Remove all of a dataset; without any, do nothing."""
        _remove(f"{self.root}/{dataset_id}")


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file, from where it stands."""
    return iter(lambda: file.read(COPY_BYTES), b"")


@contextmanager
def whole_file(url: str) -> Iterator[IO[bytes]]:
    """A file to write that appears when the block ends, and never when it raises.

    It is written under another name and moved: an object store's copy is atomic, whereas closing a file there that is
    written to commits whatever was written, also on the way of an exception.
    """
    filesystem, path = url_to_fs(url)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with filesystem.open(temporary, "wb") as file:
            yield file
            if isinstance(filesystem, LocalFileSystem):
                file.flush()
                os.fsync(file.fileno())
        if isinstance(filesystem, LocalFileSystem):
            os.replace(temporary, path)
        else:
            filesystem.mv(temporary, path)
    except BaseException:
        if filesystem.exists(temporary):
            filesystem.rm_file(temporary)
        raise


def _remove(url: str) -> None:
    filesystem, path = url_to_fs(url)
    filesystem.invalidate_cache(path)
    while filesystem.exists(path):
        with suppress(FileNotFoundError):  # another replica removes it, too
            filesystem.rm(path, recursive=True)
        filesystem.invalidate_cache(path)
