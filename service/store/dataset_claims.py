"""Work on datasets, claimed for a while by one of the service's processes: verifying, scanning, removing.

A claim runs out unless it is held, so the work of a process that died is taken up by another. Two may then do the same
work for a moment; both would write the same, and only the claim's holder writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session

from service.spec.dataset import DatasetReading
from service.spec.resources import JobError
from service.store.datasets import StoredDataset, dataset_parts, read_dataset
from service.store.engine import Tables
from service.store.models import DatasetPartRow, DatasetRow, DatasetScanRow


@dataclass(frozen=True)
class Claim:
    """Work that is ours until the claim runs out.

    Attributes:
        dataset: to work on.
        until: when the claim runs out.
        part_hashes: of the parts, in order, where they are to be put together.
        reading: how to read the dataset, where it is to be scanned.
    """

    dataset: StoredDataset
    until: datetime
    part_hashes: tuple[str, ...] = ()
    reading: DatasetReading | None = None


class DatasetClaimTables(Tables):
    """Datasets as the worker sees them: of all projects."""

    def claim_verification(self, lease_s: float) -> Claim | None:
        """The oldest dataset that waits to be verified; None when there is none, or somebody was faster."""
        now = datetime.now(UTC)
        query = select(DatasetRow).where(DatasetRow.status == "verifying", _is_free(DatasetRow, now))
        with self._transaction() as session:
            row = session.scalars(query.order_by(DatasetRow.created_at).limit(1)).first()
            if row is None:
                return None
            claim = Claim(read_dataset(row), now + timedelta(seconds=lease_s))
            if not _take(session, claim, row.claimed_until, claim.until):
                return None
            return replace(claim, part_hashes=tuple(part.sha256 for part in dataset_parts(session, row.id)))

    def claim_scan(self, lease_s: float) -> Claim | None:
        """The oldest pass that was asked for; None as of `claim_verification`."""
        now = datetime.now(UTC)
        query = (
            select(DatasetScanRow, DatasetRow)
            .join(DatasetRow, DatasetRow.id == DatasetScanRow.dataset_id)
            .where(DatasetScanRow.status == "running", DatasetRow.status == "ready", _is_free(DatasetScanRow, now))
            .order_by(DatasetScanRow.created_at)
            .limit(1)
        )
        with self._transaction() as session:
            found = session.execute(query).first()
            if found is None:
                return None
            scan, row = found
            reading = DatasetReading.model_validate(scan.reading)
            claim = Claim(read_dataset(row), now + timedelta(seconds=lease_s), reading=reading)
            return claim if _take(session, claim, scan.claimed_until, claim.until) else None

    def hold(self, claim: Claim, lease_s: float) -> Claim | None:
        """Have a claim run out later; None when it is lost, or its dataset deleted."""
        until = datetime.now(UTC) + timedelta(seconds=lease_s)
        with self._transaction() as session:
            return replace(claim, until=until) if _take(session, claim, claim.until, until) else None

    def release(self, claim: Claim) -> None:
        """Leave the work to whoever claims it next."""
        with self._transaction() as session:
            _take(session, claim, claim.until, None)

    def finish_verification(self, claim: Claim, *, decompressed_bytes: int | None, error: JobError | None) -> bool:
        """Write the verdict: the dataset is ready, or with an error rejected; False when the claim was lost."""
        values: dict[str, Any] = {"status": "rejected", "error": error and error.model_dump()}
        if error is None:
            values = {"status": "ready", "decompressed_bytes": decompressed_bytes, "ready_at": datetime.now(UTC)}
        with self._transaction() as session:
            if not _take(session, claim, claim.until, None, **values):
                return False
            session.execute(delete(DatasetPartRow).where(DatasetPartRow.dataset_id == claim.dataset.id))
            return True

    def finish_scan(self, claim: Claim, *, result: dict[str, Any] | None, error: JobError | None) -> bool:
        """Write what a pass found, or why it could not be made; False when the claim was lost."""
        values = {
            "status": "finished" if error is None else "failed",
            "result": result,
            "error": error and error.model_dump(),
        }
        with self._transaction() as session:
            return _take(session, claim, claim.until, None, **values)

    def expire_uploads(self, expiry_s: float) -> None:
        """Take away uploads that were begun long ago and never completed."""
        last = datetime.now(UTC) - timedelta(seconds=expiry_s)
        with self._transaction() as session:
            is_old = (DatasetRow.status == "uploading") & (DatasetRow.created_at < last)
            session.execute(update(DatasetRow).where(is_old).values(status="deleting"))

    def deleting_datasets(self) -> list[str]:
        """Datasets whose files are to be removed."""
        with self._transaction() as session:
            return list(session.scalars(select(DatasetRow.id).where(DatasetRow.status == "deleting")))

    def finish_deletion(self, dataset_id: str) -> None:
        """The files are gone."""
        with self._transaction() as session:
            session.execute(delete(DatasetPartRow).where(DatasetPartRow.dataset_id == dataset_id))
            session.execute(update(DatasetRow).where(DatasetRow.id == dataset_id).values(status="deleted"))


_Claimed = type[DatasetRow] | type[DatasetScanRow]


def _claimed(claim: Claim) -> tuple[_Claimed, ColumnElement[bool]]:
    """The table and the row that a claim is on, as long as the work is to be done."""
    dataset_id = claim.dataset.id
    if claim.reading is None:
        return DatasetRow, (DatasetRow.id == dataset_id) & (DatasetRow.status == "verifying")
    is_it = (DatasetScanRow.dataset_id == dataset_id) & (DatasetScanRow.reading_sha256 == claim.reading.sha256())
    return DatasetScanRow, is_it & (DatasetScanRow.status == "running")


def _is_free(table: _Claimed, now: datetime) -> ColumnElement[bool]:
    return or_(table.claimed_until.is_(None), table.claimed_until < now)


def _take(session: Session, claim: Claim, seen: datetime | None, until: datetime | None, **values: Any) -> bool:
    """Compare and set a claim.

    Args:
        session: of the transaction.
        claim: on what.
        seen: when it must still run out.
        until: when it shall.
        **values: to set with it.
    """
    table, is_it = _claimed(claim)
    is_same = table.claimed_until.is_(None) if seen is None else table.claimed_until == seen
    statement = update(table).where(is_it, is_same).values(claimed_until=until, **values)
    changed = session.execute(statement, execution_options={"synchronize_session": False})
    return bool(changed.rowcount == 1)  # type: ignore[attr-defined]
