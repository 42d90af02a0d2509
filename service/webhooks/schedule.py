"""When a message that was not taken is sent again, and when a receiver is given up.

The pauses are those that Standard Webhooks suggests: ten tries over some three days. A receiver that has taken nothing
for five days is disabled, so is one that answers 410 Gone; its owner can enable it again.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta

PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds after the first try, the second, and so on."""
PATIENCE = timedelta(days=5)
_LONGEST_WISH_S = 86_400


def next_attempt(now: datetime, num_attempts: int, wished_s: float | None) -> datetime | None:
    """When to try again; None when it was tried often enough.

    Args:
        now: when the last try failed.
        num_attempts: tries so far.
        wished_s: seconds that the receiver asked for, by `Retry-After`; at most a day of it is granted.
    """
    if num_attempts > len(PAUSES_S):
        return None
    pause_s = PAUSES_S[num_attempts - 1] * random.uniform(1.0, 1.2)  # noqa: S311  no secret
    return now + timedelta(seconds=max(pause_s, min(wished_s or 0.0, _LONGEST_WISH_S)))


def is_given_up(now: datetime, failing_since: datetime, status: int | None) -> bool:
    """Whether a receiver is to be disabled.

    Args:
        now: when the last try failed.
        failing_since: when the first one did since a message was taken.
        status: that the receiver answered, if it did.
    """
    return status == 410 or now - failing_since >= PATIENCE
