"""Datasets as their users see them: created, filled part by part, completed, read, deleted.

Each change begins with an UPDATE of the dataset's row, which both locks it and says whether it stood as needed: a part
that arrives during completion, or a job that is accepted during deletion, comes before or after it and never between.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from service.errors import ConflictError, NotFoundError, NotReadyError, SourceNotFoundError
from service.spec.dataset import Dataset, DatasetPart, DatasetReading, DatasetSpec, DatasetStatus, Sha256
from service.spec.resources import TERMINAL_STATUSES
from service.store.idempotency import IdempotencyTables, once
from service.store.models import DatasetPartRow, DatasetRow, DatasetScanRow, JobDatasetRow, JobRow

_GONE = ("deleting", "deleted")


class StoredDataset(Dataset):
    """A dataset, with what only the service needs to know of it."""

    file_name: str
    """Of the whole file, in the dataset's directory."""
    purpose: str | None = None
    """What the OpenAI-compatible API was told."""


class DatasetTables(IdempotencyTables):
    """Uploaded files, of a project those of the principal."""

    def create_dataset(
        self,
        spec: DatasetSpec,
        layout: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        purpose: str | None = None,
    ) -> tuple[StoredDataset, bool]:
        """Begin an upload.

        Args:
            spec: what is asked.
            layout: what follows from it: `file_name`, `format`, `part_bytes` and `num_parts`.
            idempotency_key: the same key with the same spec gives the same one again.
            purpose: of the OpenAI-compatible API.

        Returns:
            The dataset, and whether it is new.

        Raises:
            ConflictError: the key was used with another spec.
        """

        def make(session: Session) -> str:
            dataset_id = f"ds-{int(time.time()):x}-{secrets.token_hex(8)}"
            session.add(
                DatasetRow(
                    id=dataset_id,
                    project_id=self._project,
                    created_by=self._principal and self._principal.user,
                    name=spec.name,
                    num_bytes=spec.num_bytes,
                    status="uploading",
                    purpose=purpose,
                    created_at=datetime.now(UTC),
                    **layout,
                )
            )
            self._record(session, f"/v1/datasets/{dataset_id}")
            return dataset_id

        dataset_id, is_new = self._make_once(once("dataset", spec, idempotency_key), make)
        return self.get_dataset(dataset_id), is_new

    def get_dataset(self, dataset_id: str) -> StoredDataset:
        """One dataset.

        Raises:
            NotFoundError: the project has none of this id.
        """
        with self._transaction() as session:
            return read_dataset(self._own_dataset(session, dataset_id))

    def find_dataset(self, dataset_id: str) -> StoredDataset | None:
        """One dataset; None when the project has none of this id."""
        try:
            return self.get_dataset(dataset_id)
        except NotFoundError:
            return None

    def list_datasets(
        self,
        *,
        statuses: Collection[DatasetStatus] = (),
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 100,
        oldest_first: bool = False,
    ) -> tuple[list[StoredDataset], bool]:
        """Datasets, newest first, from the one after `after` on; and whether there are more.

        Raises:
            NotFoundError: `after` is none.
        """
        query = select(DatasetRow).where(DatasetRow.status.not_in(_GONE))
        if self._principal is not None:
            query = query.where(DatasetRow.project_id == self._principal.project)
        if statuses:
            query = query.where(DatasetRow.status.in_(statuses))
        if purpose is not None:
            query = query.where(DatasetRow.purpose == purpose)
        if after is not None:
            last = self.get_dataset(after)
            place, last_place = tuple_(DatasetRow.created_at, DatasetRow.id), (last.created_at, last.id)
            query = query.where(place > last_place if oldest_first else place < last_place)
        columns = (DatasetRow.created_at, DatasetRow.id)
        order = columns if oldest_first else tuple(column.desc() for column in columns)
        with self._transaction() as session:
            rows = session.scalars(query.order_by(*order).limit(limit + 1)).all()
        return [read_dataset(row) for row in rows[:limit]], len(rows) > limit

    def add_part(self, dataset_id: str, part: DatasetPart) -> None:
        """Note that a part has arrived; one of the same number gives way.

        Raises:
            NotFoundError: there is no such dataset.
            ConflictError: it takes no parts any more.
        """
        with self._transaction() as session:
            if not _lock(session, dataset_id, "uploading"):
                raise ConflictError(
                    f"dataset {dataset_id} is {self._own_dataset(session, dataset_id).status}: it has its parts"
                )
            self._own_dataset(session, dataset_id)
            session.merge(DatasetPartRow(dataset_id=dataset_id, **part.model_dump()))

    def list_parts(self, dataset_id: str) -> list[DatasetPart]:
        """The parts that have arrived, by number.

        Raises:
            NotFoundError: there is no such dataset.
        """
        self.get_dataset(dataset_id)
        with self._transaction() as session:
            return dataset_parts(session, dataset_id)

    def complete_dataset(self, dataset_id: str, sha256: Sha256) -> StoredDataset:
        """Have the parts put together and verified; completing twice, with the same hash, is no error.

        Raises:
            NotFoundError: there is no such dataset.
            ConflictError: parts are missing; or it was completed with another hash.
        """
        with self._transaction() as session:
            row = self._own_dataset(session, dataset_id)
            if not _lock(session, dataset_id, "uploading", status="verifying", sha256=sha256):
                session.refresh(row)
                if row.sha256 != sha256:
                    raise ConflictError(f"dataset {dataset_id} is {row.status}, with SHA-256 {row.sha256}", "sha256")
                return read_dataset(row)
            arrived = {part.number for part in dataset_parts(session, dataset_id)}
            missing = [number for number in range(1, row.num_parts + 1) if number not in arrived]
            if missing:
                first = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
                raise ConflictError(f"{len(missing)} of {row.num_parts} parts are missing: {first}")
            self._record(session)
            session.refresh(row)
            return read_dataset(row)

    def delete_dataset(self, dataset_id: str) -> None:
        """Take a dataset away; its files follow.

        Raises:
            NotFoundError: there is no such dataset.
            ConflictError: a job or a sweep that has not ended reads it.
        """
        with self._transaction() as session:
            row = self._own_dataset(session, dataset_id)
            if not _lock(session, dataset_id, row.status, status="deleting", claimed_until=None):
                raise ConflictError(f"dataset {dataset_id} changes at this moment; try again")
            users = _unfinished_users(session, dataset_id)
            if users:
                raise ConflictError(f"{users[0]} reads it and has not ended; cancel that first")
            session.execute(delete(DatasetScanRow).where(DatasetScanRow.dataset_id == dataset_id))
            self._forget_made(session, "dataset", dataset_id)
            self._record(session)

    def ask_scan(self, dataset_id: str, reading: DatasetReading) -> DatasetScanRow:
        """A pass over a dataset: the one that was made, or is being made, or from now on shall be.

        Raises:
            NotFoundError: there is no such dataset.
            ConflictError: it is not ready.
        """
        digest = reading.sha256()
        with self._transaction() as session:
            row = self._own_dataset(session, dataset_id)
            if not _lock(session, dataset_id, "ready"):
                raise not_ready(row.id, row.status)
            scan = session.get(DatasetScanRow, (dataset_id, digest))
            if scan is None:
                document = reading.model_dump(mode="json")
                scan = DatasetScanRow(dataset_id=dataset_id, reading_sha256=digest, reading=document)
                scan.status, scan.created_at = "running", datetime.now(UTC)
                session.add(scan)
            return scan

    def _own_dataset(self, session: Session, dataset_id: str) -> DatasetRow:
        row = session.get(DatasetRow, dataset_id)
        is_other = self._principal is not None and row is not None and row.project_id != self._principal.project
        if row is None or is_other or row.status in _GONE:
            raise NotFoundError(f"there is no dataset {dataset_id!r}")
        return row


def use_datasets(session: Session, project: str, run_id: str, fields: Mapping[str, str]) -> None:
    """Note, in the transaction that accepts a run, which datasets it reads.

    Args:
        session: of that transaction.
        project: the run's.
        run_id: of the job or the sweep.
        fields: path in the spec by dataset.

    Raises:
        SourceNotFoundError: the project has no such dataset.
        ConflictError: one is not ready.
    """
    for dataset_id, field in fields.items():
        is_ready = _lock(session, dataset_id, "ready")
        row = session.get(DatasetRow, dataset_id)
        if row is None or row.project_id != project or row.status in _GONE:
            raise SourceNotFoundError(f"there is no dataset {dataset_id!r}", field)
        if not is_ready:
            raise not_ready(dataset_id, row.status, field)
        session.add(JobDatasetRow(job_id=run_id, dataset_id=dataset_id))


def not_ready(dataset_id: str, status: str, field: str | None = None) -> ConflictError:
    """The error for a dataset that cannot be read; says what to do."""
    if status == "verifying":
        return NotReadyError(f"dataset {dataset_id} is being verified: try again in a moment", field)
    what = "complete its upload first" if status == "uploading" else "upload it anew"
    return ConflictError(f"dataset {dataset_id} is {status}: {what}", field)


def dataset_parts(session: Session, dataset_id: str) -> list[DatasetPart]:
    """The parts that have arrived, by number."""
    query = select(DatasetPartRow).where(DatasetPartRow.dataset_id == dataset_id).order_by(DatasetPartRow.number)
    return [DatasetPart.model_validate(row, from_attributes=True) for row in session.scalars(query)]


def read_dataset(row: DatasetRow) -> StoredDataset:
    """The resource that a row holds."""
    fields = {name: getattr(row, name) for name in StoredDataset.model_fields if name != "uri"}
    return StoredDataset(uri=f"dataset://{row.id}", **fields)


def _lock(session: Session, dataset_id: str, standing: str, **values: Any) -> bool:
    """Write to a dataset's row if it has this status; False, and nothing is changed, when it has another."""
    is_it = (DatasetRow.id == dataset_id) & (DatasetRow.status == standing)
    changed = session.execute(
        update(DatasetRow)
        .where(is_it)
        .values(**({"status": standing} | values))
        .execution_options(synchronize_session=False)
    )
    return bool(changed.rowcount == 1)  # type: ignore[attr-defined]


def _unfinished_users(session: Session, dataset_id: str) -> list[str]:
    query = (
        select(JobRow.id)
        .join(JobDatasetRow, JobDatasetRow.job_id == JobRow.id)
        .where(JobDatasetRow.dataset_id == dataset_id, JobRow.status.not_in(TERMINAL_STATUSES))
        .limit(1)
    )
    return list(session.scalars(query))
