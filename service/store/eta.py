"""Noticing that training will end later than was told: whoever has planned by it is told anew.

The first estimate to hold is that of a step by which the pace has settled. What counts as late is more than ten
minutes, and more than a fifth of the time that was left then; the later end is what holds from there on. It is kept
with the job's progress, so a restart of the driver or of the service is no new beginning.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from service.spec.event import Event

SETTLED_STEPS = 20
"""Or a twentieth of all steps, if that is less."""
LATE_S = 600.0
LATE_SHARE = 0.2
_LONGEST_S = 1e9
"""Some thirty years: what is no estimate, and no calendar holds."""
_PROMISE = "promised_end"


def watch_eta(progress: dict[str, Any], event: Event) -> tuple[dict[str, Any], Event | None]:
    """Progress with the end that was told, and a warning when the event moves it.

    Args:
        progress: of a job.
        event: the next one.
    """
    eta_s, step, total = (event.data.get(name) for name in ("eta_s", "step", "total_steps"))
    if event.type != "train.step" or not isinstance(eta_s, int | float) or not 0 <= eta_s < _LONGEST_S:
        return progress, None
    expected = event.time + timedelta(seconds=eta_s)
    promise = progress.get(_PROMISE)
    if promise is None:
        if not isinstance(step, int) or not isinstance(total, int) or step < min(SETTLED_STEPS, total / 20):
            return progress, None
        return {**progress, _PROMISE: _promise(event.time, expected)}, None
    told_at, told = (datetime.fromisoformat(promise[name]) for name in ("told_at", "end"))
    late_s = (expected - told).total_seconds()
    if late_s <= max(LATE_S, LATE_SHARE * (told - told_at).total_seconds()):
        return progress, None
    warning = Event(
        type="job.warning",
        stage="train",
        attempt=event.attempt,
        time=event.time,
        message=f"training is to end {late_s / 60:.0f} minutes later than was told, at {expected:%Y-%m-%d %H:%M} UTC",
        data={"kind": "eta_slipped", "told": told.isoformat(), "expected": expected.isoformat(), "late_s": late_s},
    )
    return {**progress, _PROMISE: _promise(event.time, expected)}, warning


def _promise(told_at: datetime, end: datetime) -> dict[str, str]:
    return {"told_at": told_at.isoformat(), "end": end.isoformat()}
