"""What the routes need: the parts of the running control plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from service.api.event_feed import EventFeed
from service.api.log_feed import LogFeed
from service.api.principals import Principals
from service.api.rate_limit import RateLimiter
from service.backends.base import Backend
from service.datasets.datasets import Datasets
from service.reconcile import Reconciler
from service.store.store import Store
from service.uri_policy import UriPolicy
from service.webhooks.sender import WebhookSender

Read = TypeVar("Read")


@dataclass(frozen=True)
class ControlPlane:
    """The parts of a running control plane.

    Attributes:
        store: the truth, all of it; a route looks at `store.of(who)`.
        backend: the cluster.
        reconciler: brings the two to agree.
        runs_url: root of the run directories.
        datasets: what users have uploaded.
        open_metrics: whether anybody may read `/metrics`, without a key.
        uri_policy: what specs may name.
        rate_limit_per_s: requests a second of one key, twice as many at once; 0 for any number.
        allow_private_webhooks: whether receivers of messages may be in the service's own network, and without TLS.
    """

    store: Store
    backend: Backend
    reconciler: Reconciler
    runs_url: str
    datasets: Datasets
    open_metrics: bool = False
    allow_private_webhooks: bool = False
    uri_policy: UriPolicy = field(default_factory=UriPolicy)
    rate_limit_per_s: float = 0.0

    @cached_property
    def requests_by_key(self) -> RateLimiter:
        """How often each key may ask."""
        return RateLimiter(self.rate_limit_per_s, 2 * self.rate_limit_per_s)

    @cached_property
    def refusals_by_address(self) -> RateLimiter:
        """How often an address may come without a valid key: enough for a mistake, too little to fill the record."""
        return RateLimiter(1.0, 60.0)

    def __post_init__(self) -> None:
        """Make what is made once: threads that ask for it at the same moment could make two."""
        for name in ("event_feed", "log_feed", "webhook_sender", "requests_by_key", "refusals_by_address"):
            getattr(self, name)

    @cached_property
    def principals(self) -> Principals:
        """Who was let in a moment ago."""
        return Principals()

    @cached_property
    def event_feed(self) -> EventFeed:
        """Hands events to those who follow a run."""
        return EventFeed(self.store)

    @cached_property
    def log_feed(self) -> LogFeed:
        """Hands logs to those who follow a run."""
        return LogFeed(self.store, self.backend)

    @cached_property
    def webhook_sender(self) -> WebhookSender:
        """Sends what receivers are to be told."""
        return WebhookSender(self.store, allow_private=self.allow_private_webhooks)

    def end_streams(self) -> None:
        """End what followers hold open, so that the service can stop; they come back to the next one."""
        self.event_feed.close()
        self.log_feed.close()


def control_plane(request: Request) -> ControlPlane:
    """The parts behind this app."""
    parts: ControlPlane = request.app.state.control_plane
    return parts


async def read_soon(parts: ControlPlane, read: Callable[[], Read]) -> Read:
    """Read a row or two: where a server must be waited for in a thread, else at once, which takes less than that."""
    return read() if parts.store.is_embedded else await run_in_threadpool(read)


async def _parts(request: Request) -> ControlPlane:
    """Awaited, for FastAPI calls in a thread what is not."""
    return control_plane(request)


Parts = Annotated[ControlPlane, Depends(_parts)]
