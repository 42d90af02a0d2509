"""Jobs and sweeps: one row each, created once, found by those of its project."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Select, bindparam, func, insert, select
from sqlalchemy.orm import Session

from service.datasets.references import referenced_datasets
from service.errors import InvalidSpecError, NotFoundError
from service.plan.cost_gate import approval_reason
from service.schedule.demand import demand_of
from service.spec.access import Quotas
from service.spec.job import JobSpec
from service.spec.resources import JobStatus, Run, RunKind
from service.spec.run_filter import EVERYTHING, RunFilter
from service.spec.sweep import SweepSpec
from service.store.datasets import use_datasets
from service.store.event_log import append_events, status_event
from service.store.idempotency import IdempotencyTables, once
from service.store.models import JobRow, ProjectRow, table_of
from service.store.run_rows import RUNS, read_run, select_runs

AnyRun = TypeVar("AnyRun", bound=Run)

_PROJECTS = table_of(ProjectRow).c
_QUOTAS = select(_PROJECTS.quotas).where(_PROJECTS.id == bindparam("project_id"))
_NUM_QUEUED = select(func.count()).where(RUNS.status == "queued")
_INSERT = insert(table_of(JobRow))
_BY_ID = select_runs().where(RUNS.id == bindparam("run_id"))


def new_id(kind: RunKind) -> str:
    """Sortable by time, unguessable, and safe as a file name and a Ray submission id."""
    return f"{kind}-{int(time.time()):x}-{secrets.token_hex(4)}"


class RunTables(IdempotencyTables):
    """Jobs and sweeps.

    A method that takes a `resource` knows only those of its kind: a sweep is no job, and not found among them.
    """

    def create(
        self,
        resource: type[AnyRun],
        spec: JobSpec | SweepSpec,
        runs_url: str,
        idempotency_key: str | None = None,
        retry_of: str | None = None,
        *,
        priority: int = 0,
        beside: Callable[[Session, str], None] | None = None,
    ) -> tuple[AnyRun, bool]:
        """Accept a job or a sweep.

        Args:
            resource: `Job` or `Sweep`.
            spec: what is asked, of the same kind.
            runs_url: root of the run directories.
            idempotency_key: the same key with the same spec gives the same one again.
            retry_of: id of the job that this one is a retry of, if it is.
            priority: higher goes first.
            beside: writes more of a new one, by its id, in the same transaction.

        Returns:
            What was accepted, and whether it is new.

        Raises:
            ConflictError: the key was used with another spec.
            InvalidSpecError: the project's quotas will never let it start.
        """

        def make(session: Session) -> str:
            row = self._new_row(resource.kind, spec, runs_url, retry_of)
            quotas = quotas_of(session, self._project)
            require_within(quotas, resource.kind, row["spec"], priority)
            awaits = approval_reason(spec, quotas.max_gpu_hours_per_job)
            status: JobStatus = "queued" if awaits is None else "needs_approval"
            position = next_position(session) if awaits is None else None
            row |= {"status": status, "priority": priority, "queue_position": position, "queue_reason": awaits}
            session.execute(_INSERT, row)
            run_id: str = row["id"]
            use_datasets(session, self._project, run_id, referenced_datasets(row["spec"]))
            if beside is not None:
                beside(session, run_id)
            append_events(session, run_id, [status_event(None, status, 0, awaits or "")])
            self._record(session, f"/v1/{resource.kind}s/{run_id}")
            return run_id

        run_id, is_new = self._make_once(once(resource.kind, spec, idempotency_key), make)
        return self.get(resource, run_id), is_new

    def find_of_key(self, resource: type[AnyRun], idempotency_key: str, spec: JobSpec | SweepSpec) -> AnyRun | None:
        """What a create with this key and this spec made; None when there was none.

        Raises:
            ConflictError: the key was used with another spec.
        """
        made_id = self.find_made(once(resource.kind, spec, idempotency_key))
        return None if made_id is None else self.get(resource, made_id)

    def _new_row(self, kind: RunKind, spec: JobSpec | SweepSpec, runs_url: str, retry_of: str | None) -> dict[str, Any]:
        run_id = new_id(kind)
        return {
            "id": run_id,
            "kind": kind,
            "project_id": self._project,
            "created_by": self._principal and self._principal.user,
            "name": spec.name,
            "attempt": 0,
            "spec": spec.model_dump(mode="json"),
            "spec_sha256": spec.sha256(),
            "run_url": f"{runs_url}/{run_id}",
            "created_at": datetime.now(UTC),
            "progress": {},
            "retry_of": retry_of,
        }

    def find(self, run_id: str) -> Run | None:
        """One job or sweep; None when there is none of this id."""
        with self._reading() as connection:
            row = connection.execute(_BY_ID, {"run_id": run_id}).one_or_none()
        if row is None:
            return None
        run = read_run(row)
        return run if self._principal is None or run.project == self._principal.project else None

    def get(self, resource: type[AnyRun], run_id: str) -> AnyRun:
        """One job, or one sweep.

        Raises:
            NotFoundError: there is none of this id.
        """
        run = self.find(run_id)
        if not isinstance(run, resource):
            raise NotFoundError(f"there is no {resource.kind} {run_id!r}")
        return run

    def list_runs(
        self,
        resource: type[AnyRun],
        *,
        only: RunFilter = EVERYTHING,
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[AnyRun], bool]:
        """Jobs, or sweeps, newest first, from the one after `after` on; and whether there are more.

        Raises:
            NotFoundError: `after` is none.
        """
        query = self._own_runs().where(RUNS.kind == resource.kind, *_conditions(only))
        query = query.order_by(RUNS.created_at.desc(), RUNS.id.desc()).limit(limit + 1)
        if after is not None:
            last = self.get(resource, after)
            older = (RUNS.created_at < last.created_at) | ((RUNS.created_at == last.created_at) & (RUNS.id < last.id))
            query = query.where(older)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [cast("AnyRun", read_run(row)) for row in rows[:limit]], len(rows) > limit

    def _own_runs(self) -> Select[Any]:
        """What the principal may see."""
        query = select_runs()
        return query if self._principal is None else query.where(RUNS.project_id == self._principal.project)


def require_within(quotas: Quotas, kind: RunKind, spec: Mapping[str, Any], priority: int) -> None:
    """Refuse what would wait for ever.

    Raises:
        InvalidSpecError: names the quota.
    """
    if quotas.max_gpus is not None and demand_of(spec).gpus > quotas.max_gpus:
        message = f"the project may use {quotas.max_gpus} GPUs at a time, and each worker counts as one"
        raise InvalidSpecError(message, "parallel.num_workers" if kind == "job" else "base.parallel.num_workers")
    require_priority(quotas, priority)


def require_priority(quotas: Quotas, priority: int) -> None:
    """Refuse what the project may not ask for.

    Raises:
        InvalidSpecError: that is higher.
    """
    if priority > quotas.max_priority:
        raise InvalidSpecError(f"is above {quotas.max_priority}, the highest that the project may ask for", "priority")


def quotas_of(session: Session, project: str) -> Quotas:
    """A project's."""
    return Quotas.model_validate(session.execute(_QUOTAS, {"project_id": project}).scalar_one())


def next_position(session: Session) -> int:
    """The queue's end, until the scheduler has looked at what is new."""
    return 1 + (session.execute(_NUM_QUEUED).scalar() or 0)


def _conditions(only: RunFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if only.statuses:
        found.append(RUNS.status.in_(only.statuses))
    if only.name is not None:
        found.append(RUNS.name.contains(only.name, autoescape=True))
    if only.created_after is not None:
        found.append(RUNS.created_at >= only.created_after)
    if only.created_before is not None:
        found.append(RUNS.created_at < only.created_before)
    return found
