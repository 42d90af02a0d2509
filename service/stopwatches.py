"""How long things have lasted, by a clock that no step of the wall clock moves.

Kept in memory only: a control plane that has just started gives everything its whole time again, which delays an end
and never hastens one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import NamedTuple

Clock = Callable[[], float]
"""Seconds since some moment, never less than before."""


class Lasting(NamedTuple):
    """What is timed."""

    run_id: str
    attempt: int
    what: str


class Stopwatches:
    """One for each thing, started when it is first asked for.

    Args:
        clock: what they go by.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._started: dict[Lasting, float] = {}

    def elapsed_s(self, lasting: Lasting) -> float:
        """Seconds since it was first asked for, or last reset."""
        now = self._clock()
        return now - self._started.setdefault(lasting, now)

    def reset(self, lasting: Lasting) -> None:
        """Begin anew at the next question."""
        self._started.pop(lasting, None)

    def keep(self, run_ids: Collection[str]) -> None:
        """Forget all but those of some runs."""
        self._started = {lasting: start for lasting, start in self._started.items() if lasting.run_id in run_ids}
