"""What the drivers have in common: one process an attempt, that tells its story in events and ends with a last word.

Started by the control plane as `python -m ray_jobs.<driver> --run-url URL --attempt N`. A killed driver is started
again with the next attempt number. It tells the control plane nothing; it writes events, and its last one says how the
attempt ended.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence

import ray

from ray_jobs.fence import Fence, claim_attempt
from ray_jobs.run_directory import EventWriter, RunDirectory
from service.errors import SleddogError, SupersededError
from service.spec.event import ALIVE_INTERVAL_S

_PROGRESS_INTERVAL_S = 0.25

_logger = logging.getLogger(__name__)

Work = Callable[[RunDirectory, EventWriter, int], str]
"""All that a driver does, of a run, with its events, in an attempt; Ray is connected. Returns the report's URL."""


def drive(module: str, work: Work, arguments: Sequence[str] | None = None) -> int:
    """Run one attempt.

    Args:
        module: the driver's, for `--help`.
        work: what it does.
        arguments: of the command line.

    Returns:
        0, or 1 where another driver has started this attempt, or a later one; what the work raises is told as the last
        event, and raised on.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--run-url", required=True, help="run directory, with the spec in it")
    parser.add_argument("--attempt", type=int, default=1, help="1 for the first start")
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    run = RunDirectory(options.run_url)
    if not claim_attempt(run, options.attempt):
        _logger.error("attempt %d was started before, and may still run; this driver leaves it alone", options.attempt)
        return 1  # without a word: the control plane starts the next attempt, which the first one cannot disturb
    try:
        _attempt(run, work, options.attempt)
    except SupersededError as error:
        _logger.error("this driver ends itself: %s", error)  # noqa: TRY400  its trace says nothing more
        return 1
    return 0


def _attempt(run: RunDirectory, work: Work, attempt: int) -> None:
    fence = Fence(run, attempt)
    with EventWriter(run, "driver", attempt, alive_interval_s=ALIVE_INTERVAL_S, fence=fence) as events:
        events.emit("job.started")
        events.flush()
        try:
            ray.init(logging_level=logging.WARNING)
            report = work(run, events, attempt)
        except SupersededError:
            raise
        except Exception as error:
            _report_failure(events, error)
            raise
        events.emit("job.finished", report=report)


class PrepareProgress:
    """Turns the data stage's progress into events, a few a second at most."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._last = self._start = 0.0
        self._task: str | None = None
        self._first_done = 0

    def __call__(self, task: str, done: int, total: int | None, unit: str) -> None:
        """As `ray_jobs.data.corpus_builder.ProgressCallback`."""
        now = time.monotonic()
        if task != self._task:
            self._task, self._start, self._first_done = task, now, done
        if done != total and now - self._last < _PROGRESS_INTERVAL_S:
            return
        self._last = now
        eta_s = self._eta_s(done, total, now)
        self._events.emit("stage.progress", stage="prepare", task=task, done=done, total=total, unit=unit, eta_s=eta_s)

    def _eta_s(self, done: int, total: int | None, now: float) -> float | None:
        """Seconds to the task's end, at its pace so far: what an earlier start had done counts for nothing."""
        if total is None or done <= self._first_done:
            return 0.0 if done == total else None
        return (now - self._start) / (done - self._first_done) * (total - done)


def _report_failure(events: EventWriter, error: Exception) -> None:
    known = error if isinstance(error, SleddogError) else None
    events.emit(
        "job.failed",
        message=str(error),
        code=known.code if known else "internal_error",
        fault=known.fault if known else "infrastructure",
        field=known.field if known else None,
    )
