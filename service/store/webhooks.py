"""Receivers of messages, project by project, and what became of the messages."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.errors import ConflictError, NotFoundError
from service.spec.webhook import TEST_TYPE, Delivery, NewWebhook, Webhook, WebhookSpec
from service.store.idempotency import IdempotencyTables, Once, once
from service.store.models import DeliveryRow, WebhookRow
from service.store.outbox import OutboxTables, new_message
from service.webhooks.signature import webhook_secret

MAX_WEBHOOKS = 20
"""Of a project: each event is written once for each of them."""


class WebhookTables(OutboxTables, IdempotencyTables):
    """Webhooks, as their owners see them."""

    def create_webhook(self, spec: WebhookSpec, idempotency_key: str | None = None) -> tuple[NewWebhook, bool]:
        """Send messages from now on.

        Returns:
            The webhook with its secret, and whether it is new.

        Raises:
            ConflictError: the project has as many as it may, or the key was used for something else.
        """

        def make(session: Session) -> str:
            of_project = WebhookRow.project_id == self._project
            if (session.scalar(select(func.count()).where(of_project)) or 0) >= MAX_WEBHOOKS:
                raise ConflictError(f"a project has {MAX_WEBHOOKS} webhooks at most; delete one")
            row = WebhookRow(
                id=f"wh-{secrets.token_hex(6)}",
                project_id=self._project,
                url=spec.url,
                events=list(spec.events),
                description=spec.description,
                created_at=datetime.now(UTC),
            )
            session.add(row)
            self._record(session, f"/v1/webhooks/{row.id}")
            return row.id

        webhook_id, is_new = self._make_once(once("webhook", spec, idempotency_key), make)
        secret = webhook_secret(self._secret, webhook_id)
        return NewWebhook(**self.get_webhook(webhook_id).model_dump(), secret=secret), is_new

    def list_webhooks(self) -> list[Webhook]:
        """All of the project, oldest first."""
        query = select(WebhookRow).where(WebhookRow.project_id == self._project)
        with self._transaction() as session:
            rows = session.scalars(query.order_by(WebhookRow.created_at, WebhookRow.id)).all()
        return [_webhook(row) for row in rows]

    def get_webhook(self, webhook_id: str) -> Webhook:
        """One of the project's.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._transaction() as session:
            return _webhook(self._find(session, webhook_id))

    def delete_webhook(self, webhook_id: str) -> None:
        """Send no more, and forget what was sent.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._transaction() as session:
            row = self._find(session, webhook_id)
            session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id))
            session.delete(row)
            self._forget_made(session, "webhook", webhook_id)
            self._record(session)

    def enable_webhook(self, webhook_id: str) -> Webhook:
        """Send again to a receiver that was given up, what is pending too.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._transaction() as session:
            row = self._find(session, webhook_id)
            row.disabled_at = row.disabled_reason = row.failing_since = None
            self._record(session)
        return self.get_webhook(webhook_id)

    def queue_test(self, webhook_id: str, idempotency_key: str | None = None) -> Delivery:
        """Write a message that only says that messages come through.

        Raises:
            NotFoundError: there is none of this id; or the key's message is no longer kept.
            ConflictError: it is disabled; or the key was used for something else.
        """

        def make(session: Session) -> str:
            if self._find(session, webhook_id).disabled_at is not None:
                raise ConflictError("the webhook is disabled; enable it first")
            message = new_message(webhook_id, TEST_TYPE, datetime.now(UTC), {"webhook": webhook_id})
            session.add(message)
            self._record(session)
            return message.id

        request = None if idempotency_key is None else Once(idempotency_key, f"test of {webhook_id}", "")
        delivery_id, _ = self._make_once(request, make)
        with self._transaction() as session:
            row = session.get(DeliveryRow, delivery_id)
        if row is None:
            raise NotFoundError(f"message {delivery_id} is no longer kept")
        return _delivery(row)

    def list_deliveries(
        self, webhook_id: str, *, after: str | None = None, limit: int = 100
    ) -> tuple[list[Delivery], bool]:
        """Messages, newest first, from the one after `after` on; and whether there are more.

        Raises:
            NotFoundError: there is no such webhook, or `after` is none of its messages.
        """
        query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
        query = query.order_by(DeliveryRow.created_at.desc(), DeliveryRow.id.desc()).limit(limit + 1)
        with self._transaction() as session:
            self._find(session, webhook_id)
            if after is not None:
                last = session.get(DeliveryRow, after)
                if last is None or last.webhook_id != webhook_id:
                    raise NotFoundError(f"there is no delivery {after!r}")
                same_time = (DeliveryRow.created_at == last.created_at) & (DeliveryRow.id < last.id)
                query = query.where((DeliveryRow.created_at < last.created_at) | same_time)
            rows = session.scalars(query).all()
        return [_delivery(row) for row in rows[:limit]], len(rows) > limit

    def _find(self, session: Session, webhook_id: str) -> WebhookRow:
        row = session.get(WebhookRow, webhook_id)
        if row is None or row.project_id != self._project:
            raise NotFoundError(f"there is no webhook {webhook_id!r}")
        return row


def _webhook(row: WebhookRow) -> Webhook:
    return Webhook.model_validate(row, from_attributes=True)


def _delivery(row: DeliveryRow) -> Delivery:
    return Delivery.model_validate(row, from_attributes=True)
