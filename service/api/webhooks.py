"""`/v1/webhooks`: who is told what happens, and whether that came through."""

from __future__ import annotations

from fastapi import APIRouter, Response, status

from service.api.access import KeyedRoute, Member, Viewer
from service.api.dependencies import Parts
from service.api.runs import CONFLICT, PROBLEMS, AfterId, IdempotencyKey, Limit, not_found
from service.spec.resources import Page
from service.spec.webhook import Delivery, NewWebhook, Webhook, WebhookSpec
from service.webhooks.address import resolve

_NOT_FOUND = not_found("webhook")

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=PROBLEMS, route_class=KeyedRoute)


@router.post("", status_code=status.HTTP_201_CREATED, responses=CONFLICT)
def create_webhook(
    spec: WebhookSpec, who: Member, parts: Parts, response: Response, idempotency_key: IdempotencyKey = None
) -> NewWebhook:
    """Have messages sent to a URL from now on; the answer has the secret that they are signed with."""
    resolve(spec.url, allow_private=parts.allow_private_webhooks)
    webhook, is_new = parts.store.of(who).create_webhook(spec, idempotency_key)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    if not is_new:
        response.status_code = status.HTTP_200_OK
    return webhook


@router.get("")
def list_webhooks(who: Viewer, parts: Parts) -> list[Webhook]:
    """All webhooks of the project."""
    return parts.store.of(who).list_webhooks()


@router.get("/{webhook_id}", responses=_NOT_FOUND)
def get_webhook(webhook_id: str, who: Viewer, parts: Parts) -> Webhook:
    """How a receiver does."""
    return parts.store.of(who).get_webhook(webhook_id)


@router.delete("/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT, responses=_NOT_FOUND)
def delete_webhook(webhook_id: str, who: Member, parts: Parts) -> None:
    """Send no more messages, those that are pending neither."""
    parts.store.of(who).delete_webhook(webhook_id)


@router.post("/{webhook_id}/test", status_code=status.HTTP_202_ACCEPTED, responses=_NOT_FOUND | CONFLICT)
def test_webhook(
    webhook_id: str,
    who: Member,
    parts: Parts,
    idempotency_key: IdempotencyKey = None,  # noqa: PT028  this is no test
) -> Delivery:
    """Send a message of type `webhook.test`; its delivery tells what became of it."""
    delivery = parts.store.of(who).queue_test(webhook_id, idempotency_key)
    parts.webhook_sender.wake()
    return delivery


@router.post("/{webhook_id}/enable", responses=_NOT_FOUND)
def enable_webhook(webhook_id: str, who: Member, parts: Parts) -> Webhook:
    """Send again to a receiver that was given up, what is pending too."""
    webhook = parts.store.of(who).enable_webhook(webhook_id)
    parts.webhook_sender.wake()
    return webhook


@router.get("/{webhook_id}/deliveries", responses=not_found("webhook or delivery"))
def list_deliveries(
    webhook_id: str, who: Viewer, parts: Parts, after: AfterId = None, limit: Limit = 50
) -> Page[Delivery]:
    """Messages to a receiver, newest first; those that are not pending are kept for a month."""
    deliveries, has_more = parts.store.of(who).list_deliveries(webhook_id, after=after, limit=limit)
    return Page(data=deliveries, has_more=has_more)
