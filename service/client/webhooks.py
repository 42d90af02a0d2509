"""`client.webhooks`, blocking and awaited."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from service.client.calls import Call
from service.client.runs import AsyncSender, Sender
from service.spec.resources import Page
from service.spec.webhook import Delivery, NewWebhook, Webhook, WebhookSpec

_PATH = "/v1/webhooks"


def _read(kind: Any) -> Any:
    adapter = TypeAdapter(kind)
    return lambda response: adapter.validate_json(response.content)


def _nothing(_response: httpx.Response) -> None:
    """There is no answer."""


_new: Callable[[httpx.Response], NewWebhook] = _read(NewWebhook)
_one: Callable[[httpx.Response], Webhook] = _read(Webhook)
_all: Callable[[httpx.Response], builtins.list[Webhook]] = _read(list[Webhook])
_delivery: Callable[[httpx.Response], Delivery] = _read(Delivery)
_deliveries: Callable[[httpx.Response], Page[Delivery]] = _read(Page[Delivery])


def _of(webhook_id: str, *parts: str) -> str:
    return "/".join((_PATH, quote(webhook_id, safe=""), *parts))


def _create(spec: WebhookSpec, idempotency_key: str | None) -> Call[NewWebhook]:
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", _PATH, _new, json=spec.model_dump(mode="json"), headers=headers)


def _test(webhook_id: str, idempotency_key: str | None) -> Call[Delivery]:
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", _of(webhook_id, "test"), _delivery, headers=headers)


def _list_deliveries(webhook_id: str, after: str | None, limit: int) -> Call[Page[Delivery]]:
    return Call("GET", _of(webhook_id, "deliveries"), _deliveries, params={"after": after, "limit": limit})


def _spec(url: str, events: Sequence[str] | None, description: str) -> WebhookSpec:
    chosen = {} if events is None else {"events": tuple(events)}
    return WebhookSpec.model_validate({"url": url, "description": description, **chosen})


class Webhooks:
    """`client.webhooks`: who is told what happens.

    Args:
        client: sends the calls.
    """

    def __init__(self, client: Sender) -> None:
        self._client = client

    def create(
        self,
        url: str,
        events: Sequence[str] | None = None,
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> NewWebhook:
        """Have messages sent to a URL; the answer's `secret` is what they are signed with, shown this once.

        Args:
            url: of the receiver.
            events: types of `service.spec.webhook.WebhookEventType`; by default jobs that have ended.
            description: for people.
            idempotency_key: the same key with the same values makes one webhook.

        Raises:
            ValidationError: a type is not known.
            InvalidSpecError: the URL is not one to send to.
        """
        return self._client.send(_create(_spec(url, events, description), idempotency_key))

    def list(self) -> builtins.list[Webhook]:
        """All webhooks of the project."""
        return self._client.send(Call("GET", _PATH, _all))

    def get(self, webhook_id: str) -> Webhook:
        """How a receiver does."""
        return self._client.send(Call("GET", _of(webhook_id), _one))

    def delete(self, webhook_id: str) -> None:
        """Send no more messages."""
        self._client.send(Call("DELETE", _of(webhook_id), _nothing))

    def test(self, webhook_id: str, *, idempotency_key: str | None = None) -> Delivery:
        """Send a message of type `webhook.test`, once for a key; `deliveries` tells what became of it."""
        return self._client.send(_test(webhook_id, idempotency_key))

    def enable(self, webhook_id: str) -> Webhook:
        """Send again to a receiver that was given up, what is pending too."""
        return self._client.send(Call("POST", _of(webhook_id, "enable"), _one))

    def deliveries(self, webhook_id: str, *, after: str | None = None, limit: int = 50) -> Page[Delivery]:
        """One page of the messages to a receiver, newest first."""
        return self._client.send(_list_deliveries(webhook_id, after, limit))


class AsyncWebhooks:
    """As `Webhooks`, awaited.

    Args:
        client: sends the calls.
    """

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def create(
        self,
        url: str,
        events: Sequence[str] | None = None,
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> NewWebhook:
        """As `Webhooks.create`."""
        return await self._client.send(_create(_spec(url, events, description), idempotency_key))

    async def list(self) -> builtins.list[Webhook]:
        """As `Webhooks.list`."""
        return await self._client.send(Call("GET", _PATH, _all))

    async def get(self, webhook_id: str) -> Webhook:
        """As `Webhooks.get`."""
        return await self._client.send(Call("GET", _of(webhook_id), _one))

    async def delete(self, webhook_id: str) -> None:
        """As `Webhooks.delete`."""
        await self._client.send(Call("DELETE", _of(webhook_id), _nothing))

    async def test(self, webhook_id: str, *, idempotency_key: str | None = None) -> Delivery:
        """As `Webhooks.test`."""
        return await self._client.send(_test(webhook_id, idempotency_key))

    async def enable(self, webhook_id: str) -> Webhook:
        """As `Webhooks.enable`."""
        return await self._client.send(Call("POST", _of(webhook_id, "enable"), _one))

    async def deliveries(self, webhook_id: str, *, after: str | None = None, limit: int = 50) -> Page[Delivery]:
        """As `Webhooks.deliveries`."""
        return await self._client.send(_list_deliveries(webhook_id, after, limit))
