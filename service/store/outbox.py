"""The outbox: messages to receivers, written with the events that they tell of, and taken out when they were taken in.

A message is in the table as soon as its event is, by the same transaction, so neither is without the other, whatever
crashes. It is claimed for the time of a try: of several replicas one sends it, and what a dead one had claimed is due
again a little later. So each message is sent at least once, and seldom twice; its id is the same each time.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.orm import Session

from service.spec.event import Event
from service.spec.resources import RunKind
from service.spec.webhook import message_type
from service.store.engine import Tables
from service.store.models import DeliveryRow, JobRow, WebhookRow
from service.webhooks.signature import webhook_secret

_LEFT_OUT = ("summary",)
"""Parts of an event's data that are too long for a message; the event has them."""

_PROJECT = select(JobRow.project_id).where(JobRow.id == bindparam("run_id")).scalar_subquery()
_RECEIVERS = select(WebhookRow).where(WebhookRow.project_id == _PROJECT, WebhookRow.disabled_at.is_(None))


class Message(NamedTuple):
    """A message that is due, and where it goes."""

    id: str
    webhook_id: str
    url: str
    secret: str
    body: bytes
    attempts: int
    """Tries before this one."""


def enqueue(session: Session, run_id: str, numbered: Sequence[tuple[int, Event]]) -> None:
    """Write what receivers are to be told of events, in the events' own transaction.

    Args:
        session: of that transaction.
        run_id: of the job or the sweep.
        numbered: the events with their sequences.
    """
    told = [(sequence, event) for sequence, event in numbered if message_type("job", event) is not None]
    if not told:
        return
    webhooks = session.scalars(_RECEIVERS, {"run_id": run_id}).all()
    if not webhooks:
        return
    run = session.get_one(JobRow, run_id)
    for webhook in webhooks:
        for sequence, event in told:
            name = message_type(cast("RunKind", run.kind), event)
            if name is not None and name in webhook.events:
                session.add(new_message(webhook.id, name, event.time, _told_of(run, sequence, event)))


def _told_of(run: JobRow, sequence: int, event: Event) -> dict[str, Any]:
    details = {name: value for name, value in event.data.items() if name not in _LEFT_OUT}
    return {
        "kind": run.kind,
        "id": run.id,
        "name": run.name,
        "project": run.project_id,
        "sequence": sequence,
        "attempt": event.attempt,
        "stage": event.stage,
        "message": event.message,
        "details": details,
    }


def new_message(webhook_id: str, name: str, time: datetime, data: dict[str, Any]) -> DeliveryRow:
    """A message that is due at once.

    Args:
        webhook_id: of its receiver.
        name: its type.
        time: of what it tells.
        data: what it tells.
    """
    body = {"type": name, "timestamp": time.isoformat(), "data": data}
    now = datetime.now(UTC)
    return DeliveryRow(
        id=f"msg_{secrets.token_hex(12)}",
        webhook_id=webhook_id,
        type=name,
        body=json.dumps(body, separators=(",", ":")),
        status="pending",
        attempts=0,
        created_at=now,
        next_attempt_at=now,
    )


class OutboxTables(Tables):
    """Messages, as the sender sees them."""

    def due_messages(self, now: datetime, limit: int) -> list[Message]:
        """One message a receiver, the one that has been due the longest; none to a disabled one."""
        place = func.row_number().over(
            partition_by=DeliveryRow.webhook_id, order_by=(DeliveryRow.next_attempt_at, DeliveryRow.created_at)
        )
        is_due = (DeliveryRow.status == "pending") & (DeliveryRow.next_attempt_at <= now)
        due = select(DeliveryRow.id, place.label("place")).where(is_due).subquery()
        query = (
            select(DeliveryRow, WebhookRow)
            .join(due, (due.c.id == DeliveryRow.id) & (due.c.place == 1))
            .join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
            .where(WebhookRow.disabled_at.is_(None))
            .order_by(DeliveryRow.next_attempt_at)
            .limit(limit)
        )
        with self._transaction() as session:
            rows = session.execute(query).all()
        return [self._message(row, webhook) for row, webhook in rows]

    def _message(self, row: DeliveryRow, webhook: WebhookRow) -> Message:
        secret = webhook_secret(self._secret, webhook.id)
        return Message(row.id, webhook.id, webhook.url, secret, row.body.encode(), row.attempts)

    def claim(self, message: Message, until: datetime) -> bool:
        """Take a message for a try, which counts; False when another sender was faster.

        Args:
            message: as read.
            until: when it is due again, should the sender die.
        """
        same = (DeliveryRow.id == message.id) & (DeliveryRow.status == "pending")
        same &= DeliveryRow.attempts == message.attempts
        with self._transaction() as session:
            values = {"attempts": message.attempts + 1, "next_attempt_at": until}
            claimed = session.execute(update(DeliveryRow).where(same).values(**values))
            return bool(claimed.rowcount == 1)  # type: ignore[attr-defined]

    def note_delivered(self, message: Message, now: datetime, http_status: int) -> None:
        """A message was taken, so its receiver does not fail."""
        values = {"status": "delivered", "delivered_at": now, "next_attempt_at": None}
        with self._transaction() as session:
            done = update(DeliveryRow).where(DeliveryRow.id == message.id)
            session.execute(done.values(**values, last_status=http_status, last_error=None))
            session.execute(update(WebhookRow).where(WebhookRow.id == message.webhook_id).values(failing_since=None))

    def note_failure(
        self, message: Message, now: datetime, http_status: int | None, error: str | None, next_attempt: datetime | None
    ) -> datetime:
        """A message was not taken.

        Args:
            message: as claimed.
            now: when.
            http_status: that the receiver answered, if it did.
            error: why there was no answer, if there was none.
            next_attempt: when to try again; None gives it up.

        Returns:
            Since when its receiver has taken nothing.
        """
        status = "pending" if next_attempt else "failed"
        values = {"status": status, "next_attempt_at": next_attempt, "last_status": http_status, "last_error": error}
        with self._transaction() as session:
            session.execute(update(DeliveryRow).where(DeliveryRow.id == message.id).values(**values))
            webhook = session.get(WebhookRow, message.webhook_id, with_for_update=True)
            if webhook is None:  # deleted meanwhile
                return now
            webhook.failing_since = webhook.failing_since or now
            return webhook.failing_since

    def disable_webhook(self, webhook_id: str, now: datetime, reason: str) -> None:
        """Send no more to a receiver."""
        with self._transaction() as session:
            disabled = update(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.disabled_at.is_(None))
            session.execute(disabled.values(disabled_at=now, disabled_reason=reason))

    def forget_messages(self, before: datetime) -> None:
        """Delete the messages of an earlier time that are not pending."""
        with self._transaction() as session:
            old = (DeliveryRow.status != "pending") & (DeliveryRow.created_at < before)
            session.execute(delete(DeliveryRow).where(old))
