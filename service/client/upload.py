"""What an upload reads of a file: its parts, and which of them the service still lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from service.errors import InvalidDatasetError
from service.spec.dataset import Dataset, DatasetPart, DatasetSpec

Progress = Callable[[int, int], None]
"""Told of bytes done, and of bytes in all."""


def upload_spec(path: Path, name: str | None, part_bytes: int | None) -> DatasetSpec:
    """What to create for a file.

    Raises:
        InvalidDatasetError: it is empty.
        OSError: it cannot be read.
    """
    num_bytes = path.stat().st_size
    if not num_bytes:
        raise InvalidDatasetError(f"{path} is empty")
    return DatasetSpec(name=name or path.name, num_bytes=num_bytes, part_bytes=part_bytes)


def upload_key(spec: DatasetSpec, sha256: str) -> str:
    """Idempotency key of an upload: the same file, sent again, goes on where it was broken off.

    Args:
        spec: what is created.
        sha256: of the file's content.
    """
    return f"upload-{hashlib.sha256((spec.canonical_json() + sha256).encode()).hexdigest()}"


def file_sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_part(path: Path, dataset: Dataset, number: int) -> bytes:
    """The bytes of a part."""
    with path.open("rb") as file:
        file.seek((number - 1) * dataset.part_bytes)
        return file.read(dataset.part_bytes)


def missing_parts(path: Path, dataset: Dataset, arrived: Sequence[DatasetPart]) -> list[int]:
    """Numbers of the parts to send: those that have not arrived, and those that the file has otherwise by now.

    Raises:
        InvalidDatasetError: the file is not of the size that was announced.
    """
    if path.stat().st_size != dataset.num_bytes:
        raise InvalidDatasetError(
            f"{path} is not of the {dataset.num_bytes:,} bytes that dataset {dataset.id} is to have"
        )
    there = {part.number: part.sha256 for part in arrived}
    return [
        number
        for number in range(1, dataset.num_parts + 1)
        if number not in there or hashlib.sha256(read_part(path, dataset, number)).hexdigest() != there[number]
    ]
