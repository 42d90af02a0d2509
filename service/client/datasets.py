"""`client.datasets`, blocking and awaited: uploads in parallel parts, and what is asked about a dataset."""

from __future__ import annotations

import asyncio
import builtins
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from service.client import dataset_calls as calls
from service.client.runs import AsyncSender, Sender
from service.client.upload import Progress, file_sha256, missing_parts, read_part, upload_key, upload_spec
from service.errors import InvalidDatasetError, NotFoundError
from service.spec.dataset import (
    Dataset,
    DatasetReading,
    DatasetSpec,
    DatasetStatus,
    DatasetValidation,
    Preview,
    PreviewRequest,
    Scan,
    Statistics,
)
from service.spec.resources import Page
from service.spec.source import RowForm

Result = TypeVar("Result", DatasetValidation, Statistics)

NUM_CONNECTIONS = 4
"""Parts on their way at once."""


class Datasets:
    """`client.datasets`.

    Args:
        client: sends the calls.
    """

    def __init__(self, client: Sender) -> None:
        self._client = client

    def upload(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        part_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Upload a file, in parallel parts, and wait until it is verified.

        The same file again goes on where it was broken off, or is the same dataset.

        Args:
            path: of the file.
            name: that the dataset gets; by default the file's.
            part_bytes: of a part; by default the service's choice.
            progress: told of the bytes that have arrived.

        Raises:
            InvalidDatasetError: the file is empty, or was refused.
        """
        path = Path(path)
        spec, sha256 = upload_spec(path, name, part_bytes), file_sha256(path)
        dataset = self._create(spec, sha256)
        if dataset.status == "uploading":
            self._send_parts(path, dataset, progress)
            dataset = self._client.send(calls.complete(dataset.id, sha256))
        return self.wait(dataset.id)

    def _create(self, spec: DatasetSpec, sha256: str) -> Dataset:
        try:
            dataset = self._client.send(calls.create(spec, upload_key(spec, sha256)))
        except NotFoundError:  # it was deleted
            return self._client.send(calls.create(spec, uuid.uuid4().hex))
        return dataset if dataset.status != "rejected" else self._client.send(calls.create(spec, uuid.uuid4().hex))

    def _send_parts(self, path: Path, dataset: Dataset, progress: Progress | None) -> None:
        numbers = missing_parts(path, dataset, self._client.send(calls.list_parts(dataset.id)).data)
        done = dataset.num_bytes - sum(_size(dataset, number) for number in numbers)
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            sent = [pool.submit(self._send_part, path, dataset, number) for number in numbers]
            try:
                for part in as_completed(sent):
                    done += part.result()
                    if progress is not None:
                        progress(done, dataset.num_bytes)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _send_part(self, path: Path, dataset: Dataset, number: int) -> int:
        return self._client.send(calls.put_part(dataset.id, number, read_part(path, dataset, number))).num_bytes

    def wait(self, dataset_id: str, *, poll_s: float = 0.2, timeout_s: float | None = None) -> Dataset:
        """Wait until a dataset is ready.

        Raises:
            InvalidDatasetError: it was rejected.
            TimeoutError: patience ran out.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (dataset := self.get(dataset_id)).status == "verifying":
            _require_patience(deadline, f"dataset {dataset_id} is still being verified")
            time.sleep(poll_s)
        return require_accepted(dataset)

    def get(self, dataset_id: str) -> Dataset:
        """How it stands."""
        return self._client.send(calls.get(dataset_id))

    def list(
        self, *, statuses: list[DatasetStatus] | None = None, after: str | None = None, limit: int = 50
    ) -> Page[Dataset]:
        """One page, newest first."""
        return self._client.send(calls.list_datasets(statuses, after, limit))

    def delete(self, dataset_id: str) -> None:
        """Take it away; refused while a job that reads it has not ended."""
        self._client.send(calls.delete(dataset_id))

    def validate(
        self, dataset_id: str, *, form: RowForm = "messages", timeout_s: float | None = None, **how: Any
    ) -> DatasetValidation:
        """The verdict on every row; waits for it.

        Args:
            dataset_id: of a dataset that is ready.
            form: how a row holds its conversation.
            timeout_s: patience; None waits for ever.
            **how: other fields of `DatasetReading`.

        Raises:
            InvalidDatasetError: it cannot be read.
            TimeoutError: patience ran out; the pass goes on.
        """
        reading = DatasetReading(form=form, **how)
        return self._scan(lambda: self._client.send(calls.validate(dataset_id, reading)), timeout_s)

    def statistics(
        self, dataset_id: str, *, form: RowForm = "messages", timeout_s: float | None = None, **how: Any
    ) -> Statistics:
        """What its conversations are like; as `validate`."""
        reading = DatasetReading(form=form, **how)
        return self._scan(lambda: self._client.send(calls.statistics(dataset_id, reading)), timeout_s)

    def preview(
        self, dataset_id: str, *, form: RowForm = "messages", start: int = 1, limit: int = 10, **how: Any
    ) -> Preview:
        """Some rows, with what would be trained of them.

        Args:
            dataset_id: of a dataset that is ready.
            form: how a row holds its conversation.
            start: first row, from 1.
            limit: rows at most.
            **how: other fields of `DatasetReading`.
        """
        return self._client.send(calls.preview(dataset_id, PreviewRequest(form=form, start=start, limit=limit, **how)))

    def _scan(self, ask: Callable[[], Scan[Result]], timeout_s: float | None) -> Result:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (result := scanned(ask())) is None:
            _require_patience(deadline, "the pass over the dataset goes on")
            time.sleep(0.2)
        return result


class AsyncDatasets:
    """As `Datasets`, awaited."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def upload(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        part_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """As `Datasets.upload`."""
        path = Path(path)
        spec, sha256 = upload_spec(path, name, part_bytes), await asyncio.to_thread(file_sha256, path)
        dataset = await self._create(spec, sha256)
        if dataset.status == "uploading":
            await self._send_parts(path, dataset, progress)
            dataset = await self._client.send(calls.complete(dataset.id, sha256))
        return await self.wait(dataset.id)

    async def _create(self, spec: DatasetSpec, sha256: str) -> Dataset:
        try:
            dataset = await self._client.send(calls.create(spec, upload_key(spec, sha256)))
        except NotFoundError:  # it was deleted
            return await self._client.send(calls.create(spec, uuid.uuid4().hex))
        if dataset.status != "rejected":
            return dataset
        return await self._client.send(calls.create(spec, uuid.uuid4().hex))

    async def _send_parts(self, path: Path, dataset: Dataset, progress: Progress | None) -> None:
        arrived = (await self._client.send(calls.list_parts(dataset.id))).data
        numbers = await asyncio.to_thread(missing_parts, path, dataset, arrived)
        done = dataset.num_bytes - sum(_size(dataset, number) for number in numbers)
        room = asyncio.Semaphore(NUM_CONNECTIONS)

        async def send(number: int) -> None:
            nonlocal done
            async with room:
                content = await asyncio.to_thread(read_part, path, dataset, number)
                done += (await self._client.send(calls.put_part(dataset.id, number, content))).num_bytes
            if progress is not None:
                progress(done, dataset.num_bytes)

        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(send(number))

    async def wait(self, dataset_id: str, *, poll_s: float = 0.2) -> Dataset:
        """As `Datasets.wait`; limit it with `asyncio.timeout`."""
        while (dataset := await self.get(dataset_id)).status == "verifying":
            await asyncio.sleep(poll_s)
        return require_accepted(dataset)

    async def get(self, dataset_id: str) -> Dataset:
        """As `Datasets.get`."""
        return await self._client.send(calls.get(dataset_id))

    async def list(
        self, *, statuses: builtins.list[DatasetStatus] | None = None, after: str | None = None, limit: int = 50
    ) -> Page[Dataset]:
        """As `Datasets.list`."""
        return await self._client.send(calls.list_datasets(statuses, after, limit))

    async def delete(self, dataset_id: str) -> None:
        """As `Datasets.delete`."""
        await self._client.send(calls.delete(dataset_id))

    async def validate(self, dataset_id: str, *, form: RowForm = "messages", **how: Any) -> DatasetValidation:
        """As `Datasets.validate`; limit it with `asyncio.timeout`."""
        reading = DatasetReading(form=form, **how)
        while (result := scanned(await self._client.send(calls.validate(dataset_id, reading)))) is None:
            await asyncio.sleep(0.2)
        return result

    async def statistics(self, dataset_id: str, *, form: RowForm = "messages", **how: Any) -> Statistics:
        """As `Datasets.statistics`; limit it with `asyncio.timeout`."""
        reading = DatasetReading(form=form, **how)
        while (result := scanned(await self._client.send(calls.statistics(dataset_id, reading)))) is None:
            await asyncio.sleep(0.2)
        return result

    async def preview(
        self, dataset_id: str, *, form: RowForm = "messages", start: int = 1, limit: int = 10, **how: Any
    ) -> Preview:
        """As `Datasets.preview`."""
        request = PreviewRequest(form=form, start=start, limit=limit, **how)
        return await self._client.send(calls.preview(dataset_id, request))


def require_accepted(dataset: Dataset) -> Dataset:
    """Return a dataset that was not rejected.

    Raises:
        InvalidDatasetError: it was, with the reason.
    """
    if dataset.error is not None:
        raise InvalidDatasetError(f"dataset {dataset.id}: {dataset.error.message}", dataset.error.field)
    return dataset


def scanned(scan: Scan[Result]) -> Result | None:
    """What a pass has found; None while it goes on.

    Raises:
        InvalidDatasetError: it could not be made.
    """
    if scan.error is not None:
        raise InvalidDatasetError(f"dataset {scan.dataset_id}: {scan.error.message}", scan.error.field)
    return scan.result


def _size(dataset: Dataset, number: int) -> int:
    return min(dataset.part_bytes, dataset.num_bytes - (number - 1) * dataset.part_bytes)


def _require_patience(deadline: float | None, what: str) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError(what)
