"""A file that comes whole, in one request, as a dataset."""

from __future__ import annotations

import hashlib
import io
import time
from datetime import UTC, datetime
from typing import IO

from service.datasets.datasets import Datasets, part_size
from service.datasets.storage import pieces
from service.errors import InvalidDatasetError
from service.spec.dataset import DatasetSpec
from service.store.datasets import StoredDataset
from service.store.fine_tuning import REPETITION_WITHIN
from service.store.idempotency import used_otherwise
from service.store.store import Store

VERIFIED_WITHIN_S = 20.0
"""That an upload waits for its verdict, so that a job may follow at once; OpenAI's client waits for 600 s."""
_POLL_S = 0.05


def receive(
    datasets: Datasets,
    store: Store,
    content: IO[bytes],
    name: str,
    purpose: str,
    *,
    is_repeated: bool,
    idempotency_key: str | None = None,
) -> StoredDataset:
    """Take a file in, and wait a while until it is verified.

    Args:
        datasets: of the control plane.
        store: of who asks.
        content: of the file, from its beginning.
        name: of the file.
        purpose: of it.
        is_repeated: whether the client says that it sends the request again: then the same file, a moment ago, is it.
        idempotency_key: the same key with the same file gives the same one again.

    Raises:
        ConflictError: the key was used with another file.
        InvalidDatasetError: it is empty, or was rejected.
        InvalidSpecError: it is too large, or of no known format.
    """
    digest = hashlib.sha256()
    for piece in pieces(content):
        digest.update(piece)
    num_bytes, sha256 = content.tell(), digest.hexdigest()
    if not num_bytes:
        raise InvalidDatasetError("is empty", "file")
    is_guess = is_repeated and idempotency_key is None
    dataset = _sent_before(store, name, purpose, sha256) if is_guess else None
    if dataset is None:
        spec = DatasetSpec(name=name, num_bytes=num_bytes)
        dataset, _ = store.create_dataset(spec, datasets.layout(spec), purpose=purpose, idempotency_key=idempotency_key)
        if dataset.status == "uploading":
            dataset = _upload(datasets, store, content, dataset, sha256)
        elif (dataset.sha256, dataset.purpose) != (sha256, purpose):
            raise used_otherwise()
    dataset = _verified(datasets, store, dataset)
    if dataset.error is not None:
        raise InvalidDatasetError(dataset.error.message, "file")
    return dataset


def _sent_before(store: Store, name: str, purpose: str, sha256: str) -> StoredDataset | None:
    recent, _ = store.list_datasets(purpose=purpose, limit=100)
    for dataset in recent:
        is_recent = datetime.now(UTC) - dataset.created_at < REPETITION_WITHIN
        if is_recent and (dataset.name, dataset.sha256) == (name, sha256):
            return dataset
    return None


def _upload(datasets: Datasets, store: Store, content: IO[bytes], dataset: StoredDataset, sha256: str) -> StoredDataset:
    content.seek(0)
    for number in range(1, dataset.num_parts + 1):
        part = content.read(part_size(dataset, number))
        datasets.put_part(store, dataset, number, io.BytesIO(part), hashlib.sha256(part).hexdigest())
    return store.complete_dataset(dataset.id, sha256)


def _verified(datasets: Datasets, store: Store, dataset: StoredDataset) -> StoredDataset:
    datasets.worker.wake()
    deadline = time.monotonic() + VERIFIED_WITHIN_S
    while dataset.status == "verifying" and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        dataset = store.get_dataset(dataset.id)
    return dataset
