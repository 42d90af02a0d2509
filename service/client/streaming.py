"""Following a run's events over server-sent events: what both clients do with each message, and when they come back."""

from __future__ import annotations

from typing import Generic

import httpx
from httpx_sse import ServerSentEvent

from service.client import calls
from service.client.calls import AnyRun, Call, Included, RunCalls
from service.errors import ServiceUnreachableError
from service.spec.resources import JobEvent

READ_TIMEOUT_S = 45.0
"""Three heartbeats of the service."""


class EventFollower(Generic[AnyRun]):
    """Where a follower of one run stands.

    Args:
        run_calls: of the kind.
        run_id: of the job or the sweep.
        after: sequence of the last event already seen.
        included: what is wanted.

    Attributes:
        is_over: the run has ended, and all of it was told.
    """

    def __init__(self, run_calls: RunCalls[AnyRun], run_id: str, after: int, included: Included) -> None:
        self._calls, self._run_id, self._after, self._included = run_calls, run_id, after, included
        self._num_failures = 0
        self.is_over = False

    def call(self) -> Call[None]:
        """Ask for what has not been seen."""
        return self._calls.stream_events(self._run_id, self._after, self._included)

    def open(self, response: httpx.Response) -> None:
        """Note that the service has answered."""
        self.is_over = response.status_code == httpx.codes.NO_CONTENT

    def take(self, message: ServerSentEvent) -> bool:
        """Note a message; whether it is one for the user."""
        self._num_failures = 0
        if not message.data:  # a heartbeat: the parser hands those on that come behind an event with an id
            return False
        if message.event == "end":
            self.is_over = True
            return False
        if message.id:
            self._after = int(message.id)
        return True

    def delay_s(self, error: httpx.TransportError | None) -> float:
        """Seconds until the next try, after a connection that was lost.

        Raises:
            ServiceUnreachableError: so many tries in a row gave nothing.
        """
        if self._num_failures == calls.MAX_RETRIES:
            raise ServiceUnreachableError(f"following {self._run_id} broke off ({error}), again and again") from error
        self._num_failures += 1
        return calls.retry_delay_s(self._num_failures - 1)


def read_event(message: ServerSentEvent) -> JobEvent:
    """The event that a message carries."""
    return JobEvent.model_validate_json(message.data)
