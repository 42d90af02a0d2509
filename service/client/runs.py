"""What `client.jobs` and `client.sweeps` have in common, blocking and awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, Protocol, TypeVar

from service.client.calls import AnyRun, Call, RunCalls
from service.errors import JobFailedError
from service.spec.resources import JobEvent, JobStatus, Page

Answer = TypeVar("Answer")

PAGE = 1000


class Sender(Protocol):
    """Sends calls, such as `Client`."""

    def send(self, call: Call[Answer]) -> Answer:
        """The answer."""
        ...


class AsyncSender(Protocol):
    """Sends calls, such as `AsyncClient`."""

    async def send(self, call: Call[Answer]) -> Answer:
        """The answer."""
        ...


def require_success(run: AnyRun) -> AnyRun:
    """Return a job or a sweep that has succeeded.

    Raises:
        JobFailedError: it failed, with its own reason, or was cancelled.
    """
    if run.status == "succeeded":
        return run
    reason = f" ({run.error.code}): {run.error.message}" if run.error else ""
    raise JobFailedError(f"{run.kind} {run.id} {run.status}{reason}", run.error.field if run.error else None)


class Runs(Generic[AnyRun]):
    """Jobs, or sweeps.

    Args:
        client: sends the calls.
        run_calls: of the kind.
    """

    def __init__(self, client: Sender, run_calls: RunCalls[AnyRun]) -> None:
        self._client, self._calls = client, run_calls

    def get(self, run_id: str) -> AnyRun:
        """How it stands."""
        return self._client.send(self._calls.get(run_id))

    def list(
        self, *, statuses: list[JobStatus] | None = None, after: str | None = None, limit: int = 50
    ) -> Page[AnyRun]:
        """One page, newest first."""
        return self._client.send(self._calls.list(statuses, after, limit))

    def cancel(self, run_id: str) -> AnyRun:
        """Cancel it."""
        return self._client.send(self._calls.cancel(run_id))

    def events(self, run_id: str, *, after: int = 0, limit: int = PAGE) -> Page[JobEvent]:
        """One page of its events."""
        return self._client.send(self._calls.list_events(run_id, after, limit))

    def stream_events(self, run_id: str, *, after: int = 0, poll_s: float = 0.5) -> Iterator[JobEvent]:
        """Events as they come, until it has ended."""
        while True:
            is_over = self.get(run_id).is_terminal
            page = self.events(run_id, after=after)
            yield from page.data
            after = page.data[-1].sequence if page.data else after
            if is_over and not page.has_more:
                return
            if not page.has_more:
                time.sleep(poll_s)

    def wait(
        self,
        run_id: str,
        *,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
        on_update: Callable[[AnyRun], None] | None = None,
    ) -> AnyRun:
        """Wait until it has succeeded.

        Args:
            run_id: of the job or the sweep.
            poll_s: seconds between two looks.
            timeout_s: patience; None waits for ever.
            on_update: told of every look.

        Raises:
            JobFailedError: it failed or was cancelled.
            TimeoutError: patience ran out; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            run = self.get(run_id)
            if on_update is not None:
                on_update(run)
            if run.is_terminal:
                return require_success(run)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{run.kind} {run_id} is still {run.status} after {timeout_s} s")
            time.sleep(poll_s)


class AsyncRuns(Generic[AnyRun]):
    """As `Runs`, awaited."""

    def __init__(self, client: AsyncSender, run_calls: RunCalls[AnyRun]) -> None:
        self._client, self._calls = client, run_calls

    async def get(self, run_id: str) -> AnyRun:
        """As `Runs.get`."""
        return await self._client.send(self._calls.get(run_id))

    async def list(
        self, *, statuses: list[JobStatus] | None = None, after: str | None = None, limit: int = 50
    ) -> Page[AnyRun]:
        """As `Runs.list`."""
        return await self._client.send(self._calls.list(statuses, after, limit))

    async def cancel(self, run_id: str) -> AnyRun:
        """As `Runs.cancel`."""
        return await self._client.send(self._calls.cancel(run_id))

    async def events(self, run_id: str, *, after: int = 0, limit: int = PAGE) -> Page[JobEvent]:
        """As `Runs.events`."""
        return await self._client.send(self._calls.list_events(run_id, after, limit))

    async def stream_events(self, run_id: str, *, after: int = 0, poll_s: float = 0.5) -> AsyncIterator[JobEvent]:
        """As `Runs.stream_events`."""
        while True:
            is_over = (await self.get(run_id)).is_terminal
            page = await self.events(run_id, after=after)
            for event in page.data:
                yield event
            after = page.data[-1].sequence if page.data else after
            if is_over and not page.has_more:
                return
            if not page.has_more:
                await asyncio.sleep(poll_s)

    async def wait(self, run_id: str, *, poll_s: float = 0.5) -> AnyRun:
        """As `Runs.wait`; limit it with `asyncio.timeout`."""
        while not (run := await self.get(run_id)).is_terminal:
            await asyncio.sleep(poll_s)
        return require_success(run)
