"""How often one key, or one address without a key, may ask: a token bucket each, in this process.

Replicas count apart, so that a limit holds for each of them. Rejected: counting in the store, which would make each
read a write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from service.errors import RateLimitedError

_MOST_BUCKETS = 10_000
"""More are not kept: whoever comes from many addresses does not fill the memory."""


class RateLimiter:
    """Token buckets by name.

    Args:
        rate_per_s: tokens that come in a second; 0 does not limit.
        burst: tokens of a full bucket.
        now: a clock, in seconds.
    """

    def __init__(self, rate_per_s: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._burst, self._now = rate_per_s, burst, now
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> None:
        """Take a token.

        Raises:
            RateLimitedError: there is none; it says when there will be.
        """
        if self._rate_per_s == 0:
            return
        with self._lock:
            now = self._now()
            tokens, since = self._buckets.get(name, (self._burst, now))
            tokens = min(self._burst, tokens + (now - since) * self._rate_per_s)
            if tokens < 1:
                raise RateLimitedError((1 - tokens) / self._rate_per_s)
            self._buckets[name] = (tokens - 1, now)
            if len(self._buckets) > _MOST_BUCKETS:
                self._forget_full(now)

    def _forget_full(self, now: float) -> None:
        """A bucket that is full again is as good as none; where all are in use, the oldest go."""
        in_use = {
            name: (tokens, since)
            for name, (tokens, since) in self._buckets.items()
            if tokens + (now - since) * self._rate_per_s < self._burst
        }
        newest = sorted(in_use.items(), key=lambda item: item[1][1])[-_MOST_BUCKETS // 2 :]
        self._buckets = dict(newest)
