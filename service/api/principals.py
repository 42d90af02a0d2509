"""Who is behind a key, remembered for a moment: clients that poll ask the store for it once a second, not each time.

So a key that is revoked, or a role that is taken away, ends here at once, for whoever changes access makes this forget
all, and with other replicas of the service after `LIFETIME_S`. Only what reads is let in by memory; whatever changes
something is looked up anew.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable

from service.store.principal import Principal

LIFETIME_S = 1.0
_MOST = 10_000


class Principals:
    """Those seen last, by the hash of their key.

    Args:
        clock: seconds, of which only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[bytes, tuple[float, Principal]] = {}
        self._forgotten_at = -math.inf

    def find(self, key: str) -> Principal | None:
        """Who it was, if that is not too long ago; its origin is that of the request by which it was looked up."""
        found = self._seen.get(_hash(key))
        if found is None or self._clock() - found[0] >= LIFETIME_S:
            return None
        return found[1]

    def remember(self, key: str, principal: Principal, asked_at: float) -> None:
        """Who it is, as of `asked_at`, before the store was asked: what is forgotten meanwhile stays forgotten."""
        if asked_at <= self._forgotten_at:
            return
        if len(self._seen) >= _MOST:
            self._seen.clear()
        self._seen[_hash(key)] = (asked_at, principal)

    def now(self) -> float:
        """Seconds, as `remember` takes them."""
        return self._clock()

    def forget(self) -> None:
        """All of them."""
        self._seen.clear()
        self._forgotten_at = self._clock()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
