"""What the followers of one run share: they wait together, and are woken together."""

from __future__ import annotations

import asyncio


class Channel:
    """A run that is followed. Lives in one event loop, so nothing here needs a lock."""

    def __init__(self) -> None:
        self.num_followers = 0
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Let every waiting follower look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Wait to be woken; False when nothing came in so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
