"""What is kept of one request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert

from service.spec.access import Outcome
from service.store.models import AuditRow, table_of
from service.store.principal import Origin, Principal

INSERT_AUDIT = insert(table_of(AuditRow))
_LONGEST_TARGET = 512


def audit_row(
    origin: Origin,
    principal: Principal | None,
    outcome: Outcome,
    *,
    code: str | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """The row of one write or one refused access, for `INSERT_AUDIT`.

    Args:
        origin: the request.
        principal: whose; None when no valid key was sent.
        outcome: what came of it.
        code: of the problem, if it was not done.
        target: path of what it was done to, where it is not the request's own.
    """
    return {
        "time": datetime.now(UTC),
        "request_id": origin.request_id,
        "project_id": principal and principal.project,
        "user_id": principal and principal.user,
        "key_id": principal and principal.key_id,
        "address": origin.address,
        "action": origin.action,
        "target": (target or origin.target)[:_LONGEST_TARGET],
        "outcome": outcome,
        "code": code,
    }
