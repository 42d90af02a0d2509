"""Followers of logs: the log of a run is fetched once for all who follow it, and only while somebody does.

Ray's Jobs API gives a driver's log whole. So the pause between two looks grows with the time that a look takes: a long
log costs the cluster no more than a fifth of the time, and comes more slowly.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from service.api.channel import Channel
from service.backends.base import Backend, submission_id
from service.errors import BackendUnavailableError
from service.store.store import Store

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
_PAUSE_FACTOR = 4
_PATIENCE_S = 3600.0
"""How long a follower waits to be woken before it looks by itself; nothing depends on it."""


class _LogChannel(Channel):
    """A followed run's log of one attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.attempt = 0
        self.text: str | None = None
        self.is_over = False

    def take(self, attempt: int, text: str, is_over: bool) -> None:
        is_news = (attempt, text, is_over) != (self.attempt, self.text, self.is_over)
        self.attempt, self.text, self.is_over = attempt, text, is_over
        if is_news:
            self.wake()


class LogFeed:
    """Hands the logs of runs to their followers.

    Args:
        store: knows each run's attempt, and whether it is over.
        backend: has the logs.
        poll_interval_s: seconds between two looks, at least.
    """

    def __init__(self, store: Store, backend: Backend, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._store, self._backend, self._poll_interval_s = store, backend, poll_interval_s
        self._channels: dict[str, _LogChannel] = {}
        self._pollers: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False

    def close(self) -> None:
        """End every stream."""
        self._is_closed = True
        for channel in self._channels.values():
            channel.wake()

    async def follow(self, run_id: str, tail: int | None) -> AsyncIterator[str]:
        """Parts of a run's log until it is over; another attempt's log follows the one before.

        Args:
            run_id: of a job or a sweep.
            tail: begin with so many lines; by default with all.
        """
        channel = self._join(run_id)
        try:
            while channel.text is None and not self._is_closed:
                await channel.wait(_PATIENCE_S)
            attempt, position = channel.attempt, _start_of(channel.text or "", tail)
            while not self._is_closed:
                is_over, text = channel.is_over, channel.text or ""
                if channel.attempt != attempt:
                    attempt, position = channel.attempt, 0
                if len(text) > position:
                    yield text[position:]
                    position = len(text)
                elif is_over:
                    return
                else:
                    await channel.wait(_PATIENCE_S)
        finally:
            channel.num_followers -= 1

    def _join(self, run_id: str) -> _LogChannel:
        channel = self._channels.setdefault(run_id, _LogChannel())
        channel.num_followers += 1
        if run_id not in self._pollers:
            self._pollers[run_id] = asyncio.create_task(self._poll(run_id, channel), name=f"log-feed {run_id}")
        return channel

    async def _poll(self, run_id: str, channel: _LogChannel) -> None:
        try:
            while channel.num_followers and not channel.is_over and not self._is_closed:
                start = time.monotonic()
                try:
                    channel.take(*await run_in_threadpool(self._read, run_id))
                except (BackendUnavailableError, SQLAlchemyError) as error:
                    log.warning("the log of %s: %s", run_id, error)
                await asyncio.sleep(max(self._poll_interval_s, _PAUSE_FACTOR * (time.monotonic() - start)))
        finally:
            del self._pollers[run_id], self._channels[run_id]

    def _read(self, run_id: str) -> tuple[int, str, bool]:
        """Attempt, log, and whether that is all; the run is read first, so the log of one that is over is whole."""
        run = self._store.find(run_id)
        if run is None:
            return 0, "", True
        text = self._backend.logs(submission_id(run.id, run.attempt)) if run.attempt else ""
        return run.attempt, text, run.is_terminal


def _start_of(text: str, tail: int | None) -> int:
    """Where the last `tail` lines begin."""
    if tail is None:
        return 0
    return len(text) - len("".join(text.splitlines(keepends=True)[-tail:]))
