"""A file that is fetched in as many tries as it takes: what is there already is not asked for again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import httpx

from service.client import calls
from service.errors import ServiceUnreachableError


class Download:
    """How much of a file has come. The target appears when it is whole.

    Args:
        path: of the file, for messages.
        target: where it goes.

    Attributes:
        position: bytes that have come.
        etag: of the version that they are of.
        is_done: all have come.
    """

    def __init__(self, path: str, target: Path) -> None:
        self._path, self._target = path, target
        self._part = target.with_name(f"{target.name}.part")
        self._num_failures = 0
        self.position = 0
        self.etag: str | None = None
        self.is_done = False
        target.parent.mkdir(parents=True, exist_ok=True)

    def open(self, response: httpx.Response) -> BinaryIO:
        """The file to write an answer to: behind what has come, or anew when that is of another version."""
        is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
        self.position = self.position if is_rest else 0
        self.etag = response.headers.get("etag")
        return self._part.open("ab" if is_rest else "wb")

    def write(self, file: BinaryIO, content: bytes) -> None:
        """Take in what has come."""
        file.write(content)
        self.position += len(content)
        self._num_failures = 0

    def finish(self) -> Path:
        """Put the file in its place."""
        os.replace(self._part, self._target)
        self.is_done = True
        return self._target

    def delay_s(self, error: httpx.TransportError) -> float:
        """Seconds until the next try, after a connection that was lost.

        Raises:
            ServiceUnreachableError: so many tries in a row gave nothing.
        """
        if self._num_failures == calls.MAX_RETRIES:
            raise ServiceUnreachableError(f"{self._path} broke off at byte {self.position}: {error}") from error
        self._num_failures += 1
        return calls.retry_delay_s(self._num_failures - 1)
