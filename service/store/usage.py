"""What projects may use and have used, and where their jobs stand in the queue."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from service.errors import NotFoundError
from service.schedule.queue import Share, Wait
from service.spec.access import Project, ProjectChange, Quotas
from service.store.accounts import project_of
from service.store.models import JobRow, ProjectRow, table_of
from service.store.run_rows import RUNS
from service.store.runs import RunTables

HALF_LIFE_S = 24 * 3600.0
"""What was used so long ago counts half when it comes to who is next."""
_PLACE = (
    update(table_of(JobRow))
    .where(RUNS.id == bindparam("run_id"), RUNS.status == "queued")
    .values(queue_position=bindparam("position"), queue_reason=bindparam("reason"), queue_eta_s=bindparam("eta_s"))
)
QUOTA_DAYS = 30
"""Over which GPU hours are limited."""


class UsageTables(RunTables):
    """Quotas, usage, queue."""

    def get_project(self, project_id: str) -> Project:
        """One project.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._transaction() as session:
            return project_of(self._project_row(session, project_id))

    def change_project(self, project_id: str, change: ProjectChange) -> Project:
        """Give a project other quotas.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._transaction() as session:
            row = self._project_row(session, project_id)
            row.quotas = change.quotas.model_dump(mode="json")
            self._record(session)
        return project_of(row)

    def shares(self) -> dict[str, Share]:
        """Of every project."""
        now = datetime.now(UTC)
        since = now - timedelta(days=QUOTA_DAYS)
        used = select(JobRow.project_id, func.sum(JobRow.gpu_seconds)).where(JobRow.created_at >= since)
        with self._transaction() as session:
            rows = session.scalars(select(ProjectRow)).all()
            is_limited = any(row.quotas.get("max_gpu_hours") is not None for row in rows)
            totals = session.execute(used.group_by(JobRow.project_id)).all() if is_limited else []
        gpu_s = {project: float(seconds) for project, seconds in totals}
        return {row.id: _share(row, gpu_s.get(row.id, 0.0), now) for row in rows}

    def charge(self, run_id: str, gpus: int, at_most_s: float) -> None:
        """Count what a running job has used since it was last charged.

        Args:
            run_id: of a running job.
            gpus: that it holds; a worker counts as one.
            at_most_s: since the caller's last charge, by a clock that does not step: the wall clock might.
        """
        now = datetime.now(UTC)
        with self._transaction() as session:
            row = session.get(JobRow, run_id, with_for_update=True)
            if row is None:
                return
            seen = row.charged_at
            seconds = 0.0 if seen is None else min(max((now - seen).total_seconds(), 0.0), at_most_s)
            values = {"charged_at": now, "gpu_seconds": JobRow.gpu_seconds + gpus * seconds}
            same = (JobRow.id == run_id) & (JobRow.charged_at.is_(None) if seen is None else JobRow.charged_at == seen)
            changed = session.execute(update(JobRow).where(same).values(**values))
            if changed.rowcount == 1:  # type: ignore[attr-defined]  # else another replica has charged it
                project = session.get_one(ProjectRow, row.project_id, with_for_update=True)
                project.used_gpu_s = _decayed(project, now) + gpus * seconds
                project.used_at = now

    def place(self, waits: Mapping[str, Wait]) -> None:
        """Tell queued jobs where they stand; those that do not wait any more are left alone."""
        values = [
            {"run_id": wait.id, "position": wait.position, "reason": wait.reason, "eta_s": wait.eta_s}
            for wait in waits.values()
        ]
        with self._transaction() as session:
            session.connection().execute(_PLACE, values)

    def _project_row(self, session: Session, project_id: str) -> ProjectRow:
        row = session.get(ProjectRow, project_id)
        if row is None:
            raise NotFoundError(f"there is no project {project_id!r}")
        return row


def _share(row: ProjectRow, gpu_s: float, now: datetime) -> Share:
    quotas = Quotas.model_validate(row.quotas)
    return Share(
        weight=quotas.weight,
        used_worker_s=_decayed(row, now),
        max_jobs=quotas.max_running_jobs,
        max_workers=quotas.max_gpus,
        worker_hours_left=None if quotas.max_gpu_hours is None else quotas.max_gpu_hours - gpu_s / 3600,
    )


def _decayed(row: ProjectRow, now: datetime) -> float:
    if row.used_at is None:
        return 0.0
    age_s = max((now - row.used_at).total_seconds(), 0.0)
    return float(row.used_gpu_s * 0.5 ** (age_s / HALF_LIFE_S))
