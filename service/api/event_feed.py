"""Followers of runs: one poller of the store a process, however many follow, and no thread for any of them.

The poller asks for the heads of all followed runs in one query, reads the new events of those that have moved, encodes
them once, and wakes their followers. A follower that comes late, or reconnects, reads the pages that it has missed
itself, and then joins the others. Rejected: a query loop a follower, whose load on the store grows with them; and
notifications of the database, which SQLite does not have.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from typing import Literal

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError

from service.api.channel import Channel
from service.spec.resources import JobEvent, Run
from service.store.heads import RunHead
from service.store.store import Store

log = logging.getLogger(__name__)

Included = Literal["events", "snapshots"]

POLL_INTERVAL_S = 0.25
HEARTBEAT_S = 15.0
"""A comment is sent so often where nothing happens, so that no proxy takes the connection for dead."""
_KEPT = 1000
"""Encoded events that a run's channel keeps; followers further behind read the store."""

_HEARTBEAT = format_sse_event(comment="")


@dataclass
class _Update:
    """What the poller has read of one run."""

    head: RunHead
    events: list[JobEvent] = field(default_factory=list)
    run: Run | None = None


class _EventChannel(Channel):
    """A followed run's newest events, encoded.

    Attributes:
        head: as read last; None before the poller's first look.
        is_over: nothing more will come.
        snapshot, version: the run as a message, and how often it has changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head: RunHead | None = None
        self.is_over = False
        self.snapshot, self.version = b"", 0
        self._messages: deque[bytes] = deque(maxlen=_KEPT)

    def take(self, update: _Update | None) -> None:
        """Take in what was read, and wake the followers where it is news; None says that the run is gone."""
        is_news = update is None or self.head != update.head
        if update is None:
            self.is_over = True
        else:
            self.head = update.head
            self._messages.extend(encode_event(event) for event in update.events)
            is_news |= self._take_snapshot(update.run)
            self.is_over = update.head.is_over
        if is_news:
            self.wake()

    def _take_snapshot(self, run: Run | None) -> bool:
        if run is None:
            return False
        content = run.model_dump_json(exclude={"spec"})
        snapshot = format_sse_event(event="snapshot", data_str=content)
        is_new = snapshot != self.snapshot
        self.snapshot, self.version = snapshot, self.version + is_new
        return is_new

    def messages_after(self, sequence: int) -> list[bytes] | None:
        """Events behind `sequence`; None when they are not kept, so that they must be read from the store."""
        assert self.head is not None, "the poller has looked"
        num_missed = self.head.last_sequence - sequence
        if num_missed > len(self._messages):
            return None
        return list(self._messages)[len(self._messages) - max(num_missed, 0) :]


def encode_event(event: JobEvent) -> bytes:
    """An event as a message, whose id is its sequence."""
    return format_sse_event(event=event.type, data_str=event.model_dump_json(), id=str(event.sequence))


class EventFeed:
    """Hands the events of runs to their followers.

    Args:
        store: polled while anybody follows, and only then.
        poll_interval_s: seconds between two looks.
        heartbeat_s: seconds of silence before a comment is sent.
    """

    def __init__(
        self, store: Store, poll_interval_s: float = POLL_INTERVAL_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._store = store
        self._poll_interval_s, self._heartbeat_s = poll_interval_s, heartbeat_s
        self._channels: dict[str, _EventChannel] = {}
        self._poller: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._is_closed = False

    @property
    def num_followers(self) -> int:
        """Streams that are open."""
        return sum(channel.num_followers for channel in self._channels.values())

    def close(self) -> None:
        """End every stream, as a service does that stops; followers come back to the next one."""
        self._is_closed = True
        for channel in self._channels.values():
            channel.wake()

    async def follow(self, run_id: str, after: int, included: Collection[Included]) -> AsyncGenerator[bytes]:
        """Messages of a run until it is over; the last one is `end`.

        Args:
            run_id: of a job or a sweep.
            after: sequence of the last event already seen.
            included: `events`; `snapshots` are how the run stands, now and whenever that has changed.
        """
        channel = self._join(run_id)
        try:
            async for message in self._messages(channel, run_id, after, included):
                yield message
        finally:
            channel.num_followers -= 1

    async def _messages(
        self, channel: _EventChannel, run_id: str, after: int, included: Collection[Included]
    ) -> AsyncGenerator[bytes]:
        version = 0
        while not self._is_closed:
            if channel.head is None and not channel.is_over:
                await channel.wait(self._heartbeat_s)
                continue
            is_over, is_idle = channel.is_over, True
            if "events" in included:
                messages, after = await self._events(channel, run_id, after)
                is_idle = not messages
                if messages:
                    yield b"".join(messages)
            if "snapshots" in included and version != channel.version:
                version, is_idle = channel.version, False
                yield channel.snapshot
            if is_idle and is_over:
                yield _end(channel.head)
                return
            if is_idle and not await channel.wait(self._heartbeat_s):
                yield _HEARTBEAT

    async def _events(self, channel: _EventChannel, run_id: str, after: int) -> tuple[list[bytes], int]:
        """The next messages, and the sequence of the last."""
        if channel.head is None:
            return [], after
        messages = channel.messages_after(after)
        if messages is not None:
            return messages, max(after, channel.head.last_sequence)
        events = await run_in_threadpool(self._store.events_after, run_id, after, _KEPT)
        return [encode_event(event) for event in events], events[-1].sequence if events else after

    def _join(self, run_id: str) -> _EventChannel:
        channel = self._channels.setdefault(run_id, _EventChannel())
        channel.num_followers += 1
        self._joined.set()
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="event-feed")
        return channel

    async def _poll(self) -> None:
        """Look again and again, until nobody follows."""
        try:
            while self._channels and not self._is_closed:
                self._joined.clear()
                await self._look()
                self._channels = {name: found for name, found in self._channels.items() if found.num_followers}
                if self._channels:
                    await self._pause()
        finally:
            self._poller = None

    async def _pause(self) -> None:
        """Until the next look is due; at once when somebody joins."""
        try:
            async with asyncio.timeout(self._poll_interval_s):
                await self._joined.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        known = {run_id: channel.head for run_id, channel in self._channels.items()}
        try:
            updates = await run_in_threadpool(_read, self._store, known)
        except SQLAlchemyError:
            log.exception("the followed runs could not be read; the next try follows")
            await asyncio.sleep(self._poll_interval_s)
            return
        for run_id in known:
            self._channels[run_id].take(updates.get(run_id))


def _read(store: Store, known: dict[str, RunHead | None]) -> dict[str, _Update]:
    """What is new of some runs; in a thread, for the store blocks.

    The head is read first, so a run that is over by its head has all its events in the store.
    """
    heads = store.heads(known)
    return {run_id: _read_one(store, run_id, known[run_id], head) for run_id, head in heads.items()}


def _read_one(store: Store, run_id: str, known: RunHead | None, head: RunHead) -> _Update:
    if known == head and head.status != "queued":  # a place in the queue changes by what others do
        return _Update(head)
    events: list[JobEvent] = []
    if known is not None and head.last_sequence > known.last_sequence:
        num_new = head.last_sequence - known.last_sequence
        events = store.events_after(run_id, known.last_sequence, num_new)
    return _Update(head, events, store.find(run_id))


def _end(head: RunHead | None) -> bytes:
    """The last message, which tells an end from a lost connection."""
    status = None if head is None else head.status
    return format_sse_event(event="end", data_str=json.dumps({"status": status}))


def is_seen(head: RunHead, last_event_id: int) -> bool:
    """Whether a run is over and all of it was seen, so that following it again would be for nothing."""
    return head.is_over and last_event_id >= head.last_sequence
