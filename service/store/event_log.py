"""Appending to a run's history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue
from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.orm import Session

from service.spec.event import Event
from service.spec.resources import JobStatus
from service.store.models import EventRow, table_of
from service.store.outbox import enqueue

LAST_STEP = 2**31 - 1
"""Steps have no more than so high a number."""
_INSERT = insert(table_of(EventRow))
_LAST_SEQUENCE = select(func.max(EventRow.sequence)).where(EventRow.job_id == bindparam("run_id"))


def append_events(session: Session, run_id: str, events: Sequence[Event]) -> None:
    """Add events behind a run's last one, and what receivers are to be told of them.

    The transaction must hold the lock on the run's row, so that two of them do not take the same number: it has changed
    the row, or has read it to change it.
    """
    session.flush()
    last = session.scalar(_LAST_SEQUENCE, {"run_id": run_id}) or 0
    numbered = list(enumerate(events, last + 1))
    if numbered:
        session.execute(_INSERT, [_row(run_id, *item) for item in numbered])
    enqueue(session, run_id, numbered)


def _row(run_id: str, sequence: int, event: Event) -> dict[str, Any]:
    step = event.data.get("step") if event.type == "train.step" else None
    if not isinstance(step, int) or not 0 <= step <= LAST_STEP:
        step = None
    document = event.model_dump(mode="json")
    return {"job_id": run_id, "sequence": sequence, "type": event.type, "step": step, "event": document}


def status_event(old: JobStatus | None, new: JobStatus, attempt: int, reason: str = "") -> Event:
    """That a run's state has changed.

    Args:
        old: the state before; None when it was created.
        new: the state from now on.
        attempt: the current one; 0 before the first.
        reason: why, in words; may be empty.
    """
    data: dict[str, JsonValue] = {"old": old, "new": new, "reason": reason}
    return Event(type="job.status", attempt=max(attempt, 1), data=data)
