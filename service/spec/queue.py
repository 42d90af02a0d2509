"""How the queue stands, as a project sees it."""

from __future__ import annotations

from datetime import datetime

from service.spec.access import Quotas
from service.spec.resources import JobStatus, Resource, RunKind


class QueueEntry(Resource):
    """A job or a sweep that has not ended; its fields are as its own."""

    id: str
    kind: RunKind
    name: str
    created_by: str | None = None
    status: JobStatus
    priority: int
    attempt: int
    created_at: datetime
    queue_position: int | None = None
    queue_reason: str | None = None
    queue_eta_s: float | None = None
    gpu_seconds: float


class Queue(Resource):
    """Of one project."""

    running: list[QueueEntry]
    """Oldest first; also those about to start or to end."""
    waiting: list[QueueEntry]
    """In the order in which they start; at the end those that await an approval."""
    quotas: Quotas
    """What the project may use."""
