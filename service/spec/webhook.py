"""Webhooks: what a receiver asks for, and what became of the messages to it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from pydantic import Field, field_validator

from service.spec.base import SpecModel
from service.spec.event import Event
from service.spec.resources import Resource, RunKind

WebhookEventType = Literal[
    "job.running",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "sweep.running",
    "sweep.succeeded",
    "sweep.failed",
    "sweep.cancelled",
    "stage.started",
    "stage.finished",
    "checkpoint.saved",
    "job.warning",
    "eval.held_out",
    "eval.task",
    "trial.ended",
]
WEBHOOK_EVENT_TYPES: tuple[WebhookEventType, ...] = get_args(WebhookEventType)
TEST_TYPE = "webhook.test"
"""Of the message that is sent on request."""

DeliveryStatus = Literal["pending", "delivered", "failed"]


class WebhookSpec(SpecModel):
    """A receiver of messages."""

    url: str = Field(max_length=2000, pattern=r"^https?://\S+$")
    """Where messages are posted to; `https`, unless the service allows its own network."""
    events: tuple[WebhookEventType, ...] = Field(
        default=("job.succeeded", "job.failed", "job.cancelled"), min_length=1, max_length=len(WEBHOOK_EVENT_TYPES)
    )
    """What it is told of."""
    description: str = Field(default="", max_length=200)
    """For people."""

    @field_validator("events")
    @classmethod
    def _each_once(cls, events: tuple[WebhookEventType, ...]) -> tuple[WebhookEventType, ...]:
        return tuple(dict.fromkeys(events))


class Webhook(Resource):
    """A receiver, and how it does."""

    id: str
    url: str
    events: list[str]
    description: str
    created_at: datetime
    failing_since: datetime | None = None
    """Since when no message was taken; null while they are."""
    disabled_at: datetime | None = None
    """When it was given up; null while messages are sent."""
    disabled_reason: str | None = None


class NewWebhook(Webhook):
    """A receiver that was just made, with the secret that its messages are signed with; it is shown this once."""

    secret: str


class Delivery(Resource):
    """A message to a receiver."""

    id: str
    """The message's `webhook-id`, the same at each try."""
    webhook_id: str
    type: str
    status: DeliveryStatus
    attempts: int
    """Tries so far."""
    created_at: datetime
    next_attempt_at: datetime | None = None
    """Of a pending one."""
    delivered_at: datetime | None = None
    last_status: int | None = None
    """HTTP status of the last answer."""
    last_error: str | None = None
    """Why the last try failed, where there was no answer."""


def message_type(kind: RunKind, event: Event) -> str | None:
    """What receivers know an event by; None when they are not told of it."""
    name = f"{kind}.{event.data.get('new')}" if event.type == "job.status" else event.type
    return name if name in WEBHOOK_EVENT_TYPES else None
