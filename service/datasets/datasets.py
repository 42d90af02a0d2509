"""What the routes do with datasets: uploads in parts, previews, passes over all rows."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import IO, Any

from service.datasets.limits import DatasetLimits
from service.datasets.naming import format_and_file_name
from service.datasets.process import PreviewTask, run_task
from service.datasets.references import with_urls
from service.datasets.storage import DatasetFiles, datasets_root, pieces
from service.datasets.worker import DatasetWorker
from service.errors import ConflictError, InvalidDatasetError, InvalidSpecError, SourceNotFoundError
from service.spec.dataset import DatasetPart, DatasetSpec, Preview, PreviewRequest
from service.store.datasets import StoredDataset, not_ready
from service.store.store import Store

_MAX_PREVIEWS = 2
"""At once; each takes a process and a CPU for up to some seconds."""


@dataclass(frozen=True)
class Datasets:
    """Datasets of one control plane.

    Attributes:
        store: of all projects; routes pass their own.
        files: where they lie.
        limits: what may be uploaded.
        worker: what works on them.
    """

    store: Store
    files: DatasetFiles
    limits: DatasetLimits
    worker: DatasetWorker
    _previews: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_MAX_PREVIEWS))

    def layout(self, spec: DatasetSpec) -> dict[str, Any]:
        """How a new dataset is kept and cut.

        Raises:
            InvalidSpecError: it is too large, its parts are too large, too small or too many, or its format is unknown.
        """
        limits = self.limits
        if spec.num_bytes > limits.max_bytes:
            raise InvalidSpecError(
                f"is more than {limits.max_bytes:,}: name a file of this size by its URI", "num_bytes"
            )
        part_bytes = spec.part_bytes or max(limits.default_part_bytes, -(-spec.num_bytes // limits.max_parts))
        if not limits.min_part_bytes <= part_bytes <= limits.max_part_bytes:
            bounds = f"{limits.min_part_bytes:,} and {limits.max_part_bytes:,}"
            raise InvalidSpecError(f"must lie between {bounds}", "part_bytes")
        num_parts = -(-spec.num_bytes // part_bytes)
        if num_parts > limits.max_parts:
            raise InvalidSpecError(
                f"cuts the file into {num_parts:,} parts, more than {limits.max_parts:,}", "part_bytes"
            )
        known, file_name = format_and_file_name(spec.name, spec.format)
        return {"format": known, "file_name": file_name, "part_bytes": part_bytes, "num_parts": num_parts}

    def put_part(
        self, store: Store, dataset: StoredDataset, number: int, content: IO[bytes], sha256: str
    ) -> DatasetPart:
        """Take a part in, again if need be.

        Args:
            store: of who asks.
            dataset: that it belongs to.
            number: from 1.
            content: from its beginning.
            sha256: of it, as announced, in hex.

        Raises:
            InvalidDatasetError: it has another hash or another size.
            ConflictError: the dataset takes no parts any more.
        """
        if not 1 <= number <= dataset.num_parts:
            raise InvalidDatasetError(f"the dataset has parts 1 to {dataset.num_parts}", "number")
        if dataset.status != "uploading":
            raise ConflictError(f"dataset {dataset.id} is {dataset.status}: it has its parts")
        digest = hashlib.sha256()
        for piece in pieces(content):
            digest.update(piece)
        actual, size = digest.hexdigest(), content.tell()
        expected = part_size(dataset, number)
        if size != expected:
            raise InvalidDatasetError(f"part {number} has {size:,} bytes, and must have {expected:,}")
        if actual != sha256:
            raise InvalidDatasetError(f"part {number} arrived with SHA-256 {actual}, not {sha256}; send it again")
        content.seek(0)
        self.files.write_part(dataset.id, sha256, content)
        part = DatasetPart(number=number, num_bytes=size, sha256=sha256)
        store.add_part(dataset.id, part)
        return part

    def preview(self, dataset: StoredDataset, request: PreviewRequest) -> Preview:
        """Some rows.

        Raises:
            ConflictError: the dataset is not ready.
            InvalidDatasetError: it cannot be read within the limits.
        """
        if dataset.status != "ready":
            raise not_ready(dataset.id, dataset.status)
        url = self.files.content_url(dataset.id, dataset.file_name)
        task = PreviewTask(url=url, format=dataset.format, request=request)
        with self._previews:
            limits = self.limits
            answer = run_task(task, memory_bytes=limits.memory_bytes, timeout_s=limits.preview_timeout_s)
        return Preview.model_validate(answer)

    def resolve(self, spec: Any) -> Any:
        """A stored spec as its driver reads it.

        Raises:
            SourceNotFoundError: it names a dataset that was deleted.
        """
        return with_urls(spec, self._url)

    def _url(self, dataset_id: str) -> str:
        dataset = self.store.find_dataset(dataset_id)
        if dataset is None:
            raise SourceNotFoundError(f"dataset {dataset_id} was deleted")
        return self.files.content_url(dataset_id, dataset.file_name)


def open_datasets(store: Store, runs_url: str, limits: DatasetLimits | None = None) -> Datasets:
    """The datasets of a control plane.

    Args:
        store: of all projects.
        runs_url: root of the run directories; the files lie beside it.
        limits: of uploads; by default those of `DatasetLimits`.
    """
    limits = limits or DatasetLimits()
    files = DatasetFiles(datasets_root(runs_url))
    return Datasets(store, files, limits, DatasetWorker(store, files, limits))


def part_size(dataset: StoredDataset, number: int) -> int:
    """Bytes of a part."""
    return min(dataset.part_bytes, dataset.num_bytes - (number - 1) * dataset.part_bytes)
