"""The record of writes and refused accesses: read here, and completed with what no transaction has recorded."""

from __future__ import annotations

from typing import cast

from sqlalchemy import or_, select

from service.spec.access import DEFAULT_PROJECT, AuditEntry, Outcome
from service.store.audit_row import INSERT_AUDIT, audit_row
from service.store.engine import Tables
from service.store.models import AuditRow
from service.store.principal import Origin


class AuditTables(Tables):
    """Who did what, when, from where, and what came of it."""

    def complete_audit(self, origin: Origin, outcome: Outcome, code: str | None = None) -> None:
        """Record a request that has ended, unless the transaction that did it has recorded it."""
        with self._transaction() as session:
            recorded = select(AuditRow.id).where(AuditRow.request_id == origin.request_id).limit(1)
            if session.scalar(recorded) is None:
                session.execute(INSERT_AUDIT, audit_row(origin, self._principal, outcome, code=code))

    def list_audit(self, *, after: int | None = None, limit: int = 100) -> tuple[list[AuditEntry], bool]:
        """The project's entries, newest first, from the one after `after` on; and whether there are more.

        The default project's hold those of requests without a valid key, too.
        """
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit + 1)
        own = AuditRow.project_id == self._project
        query = query.where(or_(own, AuditRow.project_id.is_(None)) if self._project == DEFAULT_PROJECT else own)
        if after is not None:
            query = query.where(AuditRow.id < after)
        with self._transaction() as session:
            rows = session.scalars(query).all()
        return [_entry(row) for row in rows[:limit]], len(rows) > limit


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        time=row.time,
        request_id=row.request_id,
        project=row.project_id,
        user=row.user_id,
        key_id=row.key_id,
        address=row.address,
        action=row.action,
        target=row.target,
        outcome=cast("Outcome", row.outcome),
        code=row.code,
    )
