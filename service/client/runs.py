"""What `client.jobs` and `client.sweeps` have in common, blocking and awaited."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent

from service.client.calls import AnyRun, Call, RunCalls
from service.client.download import Download
from service.client.streaming import READ_TIMEOUT_S, EventFollower, read_event
from service.errors import JobFailedError, ServiceUnreachableError
from service.spec.outcomes import Artifact
from service.spec.resources import JobEvent, JobStatus, Page, RunUpdate
from service.spec.run_filter import RunFilter

Answer = TypeVar("Answer")

PAGE = 1000


class Sender(Protocol):
    """Sends calls, such as `Client`."""

    def send(self, call: Call[Answer]) -> Answer:
        """The answer."""
        ...

    def open_stream(self, call: Call[None], read_timeout_s: float | None) -> AbstractContextManager[httpx.Response]:
        """An answer to be read as it comes."""
        ...


class AsyncSender(Protocol):
    """Sends calls, such as `AsyncClient`."""

    async def send(self, call: Call[Answer]) -> Answer:
        """The answer."""
        ...

    def open_stream(
        self, call: Call[None], read_timeout_s: float | None
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """An answer to be read as it comes."""
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
        self,
        *,
        statuses: builtins.list[JobStatus] | None = None,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[AnyRun]:
        """One page, newest first.

        Args:
            statuses: only those that stand so.
            name: only those whose name has this in it.
            created_after: only those created then or later; a time with its zone.
            created_before: only those created earlier.
            after: id of the last one of the page before.
            limit: of the page.
        """
        only = RunFilter(tuple(statuses or ()), name, created_after, created_before)
        return self._client.send(self._calls.list(only, after, limit))

    def list_all(
        self,
        *,
        statuses: builtins.list[JobStatus] | None = None,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[AnyRun]:
        """All of them, or those that `list` would give, asked for page by page."""
        only = RunFilter(tuple(statuses or ()), name, created_after, created_before)
        after: str | None = None
        while True:
            page = self._client.send(self._calls.list(only, after, PAGE))
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].id

    def cancel(self, run_id: str) -> AnyRun:
        """Cancel it."""
        return self._client.send(self._calls.cancel(run_id))

    def update(self, run_id: str, *, priority: int) -> AnyRun:
        """Let it go earlier or later, while it waits; a higher priority goes first.

        Raises:
            ConflictError: it waits no more.
        """
        return self._client.send(self._calls.update(run_id, RunUpdate(priority=priority)))

    def approve(self, run_id: str) -> AnyRun:
        """Let it into the queue though its plan is above the project's limit; for admins."""
        return self._client.send(self._calls.approve(run_id))

    def resume(self, run_id: str) -> AnyRun:
        """Go on with it after it was cancelled or has failed, from its last checkpoint."""
        return self._client.send(self._calls.resume(run_id))

    def delete(self, run_id: str, *, purge: bool = False) -> None:
        """Forget it, once it has ended.

        Args:
            run_id: of the job or the sweep.
            purge: also delete its run directory: checkpoints, export, reports.

        Raises:
            ConflictError: it has not ended.
        """
        self._client.send(self._calls.delete(run_id, purge=purge))

    def events(self, run_id: str, *, after: int = 0, limit: int = PAGE) -> Page[JobEvent]:
        """One page of its events."""
        return self._client.send(self._calls.list_events(run_id, after, limit))

    def all_events(self, run_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """All of its events so far, asked for page by page."""
        while True:
            page = self.events(run_id, after=after)
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].sequence

    def stream_events(self, run_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Events as they come, until it has ended; a lost connection is taken up again where it broke off.

        Args:
            run_id: of the job or the sweep.
            after: sequence of the last event already seen.

        Raises:
            ServiceUnreachableError: the service stays away.
        """
        follower = EventFollower(self._calls, run_id, after, "events")
        return (read_event(message) for message in self._follow(follower))

    def watch(self, run_id: str) -> Iterator[AnyRun]:
        """How it stands: now, and anew whenever that has changed, until it has ended."""
        run = self.get(run_id)
        yield run
        if run.is_terminal:
            return
        for message in self._follow(EventFollower(self._calls, run_id, 0, "snapshots")):
            yield self._calls.read_snapshot(run, message.data)

    def _follow(self, follower: EventFollower[AnyRun]) -> Iterator[ServerSentEvent]:
        while not follower.is_over:
            error: httpx.TransportError | None = None
            try:
                with self._client.open_stream(follower.call(), READ_TIMEOUT_S) as response:
                    follower.open(response)
                    if follower.is_over:
                        return
                    yield from filter(follower.take, EventSource(response).iter_sse())
            except httpx.TransportError as lost:
                error = lost
            if not follower.is_over:
                time.sleep(follower.delay_s(error))

    def logs(self, run_id: str, *, tail: int | None = None) -> str:
        """What it printed, in its latest attempt."""
        return self._client.send(self._calls.get_logs(run_id, tail))

    def stream_logs(self, run_id: str, *, tail: int | None = None) -> Iterator[str]:
        """What it prints as it comes, in parts, until it has ended; that of later attempts follows.

        Raises:
            ServiceUnreachableError: the connection was lost.
        """
        try:
            with self._client.open_stream(self._calls.stream_logs(run_id, tail), None) as response:
                yield from response.iter_text()
        except httpx.TransportError as error:
            raise ServiceUnreachableError(f"the log of {run_id} broke off: {error}") from error

    def artifacts(self, run_id: str) -> Iterator[Artifact]:
        """Files that it has left: of its export, its evaluations, its reports."""
        after: str | None = None
        while True:
            page = self._client.send(self._calls.list_artifacts(run_id, after, PAGE))
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].path

    def download(self, run_id: str, path: str, target: Path) -> Path:
        """Fetch one of its files, in as many tries as it takes.

        Args:
            run_id: of the job or the sweep.
            path: as `artifacts` tells it.
            target: the file to write; it appears when it is whole.

        Raises:
            NotFoundError: there is no such file.
            ServiceUnreachableError: the service stays away.
        """
        download = Download(path, target)
        while True:
            call = self._calls.download(run_id, path, download.position, download.etag)
            try:
                with self._client.open_stream(call, READ_TIMEOUT_S) as response:
                    with download.open(response) as file:
                        for content in response.iter_bytes():
                            download.write(file, content)
                    return download.finish()
            except httpx.TransportError as error:
                time.sleep(download.delay_s(error))

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
        self,
        *,
        statuses: builtins.list[JobStatus] | None = None,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[AnyRun]:
        """As `Runs.list`."""
        only = RunFilter(tuple(statuses or ()), name, created_after, created_before)
        return await self._client.send(self._calls.list(only, after, limit))

    async def list_all(
        self,
        *,
        statuses: builtins.list[JobStatus] | None = None,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> AsyncIterator[AnyRun]:
        """As `Runs.list_all`."""
        only = RunFilter(tuple(statuses or ()), name, created_after, created_before)
        after: str | None = None
        while True:
            page = await self._client.send(self._calls.list(only, after, PAGE))
            for run in page.data:
                yield run
            if not page.has_more:
                return
            after = page.data[-1].id

    async def cancel(self, run_id: str) -> AnyRun:
        """As `Runs.cancel`."""
        return await self._client.send(self._calls.cancel(run_id))

    async def update(self, run_id: str, *, priority: int) -> AnyRun:
        """As `Runs.update`."""
        return await self._client.send(self._calls.update(run_id, RunUpdate(priority=priority)))

    async def approve(self, run_id: str) -> AnyRun:
        """As `Runs.approve`."""
        return await self._client.send(self._calls.approve(run_id))

    async def resume(self, run_id: str) -> AnyRun:
        """As `Runs.resume`."""
        return await self._client.send(self._calls.resume(run_id))

    async def delete(self, run_id: str, *, purge: bool = False) -> None:
        """As `Runs.delete`."""
        await self._client.send(self._calls.delete(run_id, purge=purge))

    async def events(self, run_id: str, *, after: int = 0, limit: int = PAGE) -> Page[JobEvent]:
        """As `Runs.events`."""
        return await self._client.send(self._calls.list_events(run_id, after, limit))

    async def all_events(self, run_id: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """As `Runs.all_events`."""
        while True:
            page = await self.events(run_id, after=after)
            for event in page.data:
                yield event
            if not page.has_more:
                return
            after = page.data[-1].sequence

    async def stream_events(self, run_id: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """As `Runs.stream_events`."""
        follower = EventFollower(self._calls, run_id, after, "events")
        async with aclosing(self._follow(follower)) as messages:
            async for message in messages:
                yield read_event(message)

    async def watch(self, run_id: str) -> AsyncIterator[AnyRun]:
        """As `Runs.watch`."""
        run = await self.get(run_id)
        yield run
        if run.is_terminal:
            return
        async with aclosing(self._follow(EventFollower(self._calls, run_id, 0, "snapshots"))) as messages:
            async for message in messages:
                yield self._calls.read_snapshot(run, message.data)

    async def _follow(self, follower: EventFollower[AnyRun]) -> AsyncGenerator[ServerSentEvent]:
        while not follower.is_over:
            error: httpx.TransportError | None = None
            try:
                async with self._client.open_stream(follower.call(), READ_TIMEOUT_S) as response:
                    follower.open(response)
                    if follower.is_over:
                        return
                    async for message in EventSource(response).aiter_sse():
                        if follower.take(message):
                            yield message
            except httpx.TransportError as lost:
                error = lost
            if not follower.is_over:
                await asyncio.sleep(follower.delay_s(error))

    async def logs(self, run_id: str, *, tail: int | None = None) -> str:
        """As `Runs.logs`."""
        return await self._client.send(self._calls.get_logs(run_id, tail))

    async def stream_logs(self, run_id: str, *, tail: int | None = None) -> AsyncIterator[str]:
        """As `Runs.stream_logs`."""
        try:
            async with self._client.open_stream(self._calls.stream_logs(run_id, tail), None) as response:
                async for text in response.aiter_text():
                    yield text
        except httpx.TransportError as error:
            raise ServiceUnreachableError(f"the log of {run_id} broke off: {error}") from error

    async def artifacts(self, run_id: str) -> AsyncIterator[Artifact]:
        """As `Runs.artifacts`."""
        after: str | None = None
        while True:
            page = await self._client.send(self._calls.list_artifacts(run_id, after, PAGE))
            for artifact in page.data:
                yield artifact
            if not page.has_more:
                return
            after = page.data[-1].path

    async def download(self, run_id: str, path: str, target: Path) -> Path:
        """As `Runs.download`."""
        download = Download(path, target)
        while True:
            call = self._calls.download(run_id, path, download.position, download.etag)
            try:
                async with self._client.open_stream(call, READ_TIMEOUT_S) as response:
                    with download.open(response) as file:
                        async for content in response.aiter_bytes():
                            download.write(file, content)
                    return download.finish()
            except httpx.TransportError as error:
                await asyncio.sleep(download.delay_s(error))

    async def wait(self, run_id: str, *, poll_s: float = 0.5) -> AnyRun:
        """As `Runs.wait`; limit it with `asyncio.timeout`."""
        while not (run := await self.get(run_id)).is_terminal:
            await asyncio.sleep(poll_s)
        return require_success(run)
