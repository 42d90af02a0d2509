"""One run's next step: what its state in the store and its driver's state on the cluster ask for.

The order is always: write the intent to the store, then act. Acts are idempotent, and every decision is a
compare-and-set, so that two replicas may take the same step at once.

    queued ──► submitting ──► running ──► succeeded | failed
      ▲ │          │             │
      │ ▼          ├─────────────┴──► cancelling ──► cancelled
      └────────────┴── preempting ◄── running

An attempt that Ray lost, or that ended by a fault of the infrastructure, is followed by another, after a while that
grows; late writes of the old one go to the old attempt's own checkpoint directory. What the user, the data or the
arithmetic is to blame for is final. Nothing waits for Ray for ever: a driver that it never starts counts as lost, and
one that it never ends is given up; it is stopped whenever it is seen again. Nor is Ray believed for ever that a driver
runs: drivers say at least each minute that they live, and one that has long said nothing counts as lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.backends.base import AttemptState, Backend, run_and_attempt, submission_id
from service.errors import BackendRefusedError, BackendUnavailableError, ConflictError, SourceNotFoundError
from service.intake import Intake
from service.look_record import LookRecord
from service.run_reader import write_spec
from service.spec.event import ALIVE_INTERVAL_S
from service.spec.resources import JobError, JobEvent, JobStatus, Run
from service.stopwatches import Clock, Lasting, Stopwatches
from service.store.store import Store

log = logging.getLogger(__name__)

Resolve = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_MAX_BACKOFF_S = 120.0


@dataclass(frozen=True)
class Limits:
    """What an attempt may take.

    Attributes:
        max_attempts: starts of a driver, since the run was last queued, before a lost one counts as failure.
        start_timeout_s: seconds that Ray, while it answers, may take to start a driver.
        stop_timeout_s: likewise to end one.
        silence_timeout_s: seconds that a driver may say nothing, while Ray answers and its run directory can be read.
        backoff_s: seconds before the second attempt; each further one waits four times as long, up to two minutes.
    """

    max_attempts: int = 3
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 60.0
    silence_timeout_s: float = 10 * ALIVE_INTERVAL_S
    backoff_s: float = 2.0


DEFAULT_LIMITS = Limits()


class Attempts:
    """Takes steps.

    Args:
        store: the truth.
        backend: the cluster.
        limits: of each attempt.
        resolve: makes of a stored spec what its driver reads.
        clock: for the limits.
        record: of what was done.
    """

    def __init__(
        self, store: Store, backend: Backend, limits: Limits, *, resolve: Resolve, clock: Clock, record: LookRecord
    ) -> None:
        self._store, self._backend, self._limits, self._resolve = store, backend, limits, resolve
        self._record = record
        self.intake = Intake(store, record)
        self.stopwatches = Stopwatches(clock)

    def step(self, run: Run) -> None:
        """Take in what a run said, and do the one next thing.

        Raises:
            BackendUnavailableError: Ray did not answer; nothing was decided.
        """
        num_taken = self.intake.num_taken(run.id)
        if not self.intake.try_to_take(run) or self.intake.num_taken(run.id) > num_taken:
            self.stopwatches.reset(Lasting(run.id, run.attempt, "silence"))
        try:
            if run.status == "submitting":
                self._submit(run)
            elif run.status == "running":
                self._observe(run)
            elif run.status in ("cancelling", "preempting"):
                self._end(run)
        except BackendUnavailableError:
            # only time in which Ray answers counts
            for what in ("start", "stop", "silence"):
                self.stopwatches.reset(Lasting(run.id, run.attempt, what))
            raise

    def is_wanted(self, attempt_id: str) -> bool:
        """Whether a driver is its run's current attempt; runs of another store are not ours to judge."""
        run_id, attempt = run_and_attempt(attempt_id)
        run = self._store.find(run_id)
        if run is None:
            return True
        return run.status in ("submitting", "running", "cancelling", "preempting") and run.attempt == attempt

    def _has_lasted(self, run: Run, what: str, limit_s: float) -> bool:
        return self.stopwatches.elapsed_s(Lasting(run.id, run.attempt, what)) >= limit_s

    def _submit(self, run: Run) -> None:
        num_failures = run.attempt - run.attempts_before - 1
        pause_s = min(self._limits.backoff_s * 4 ** (num_failures - 1), _MAX_BACKOFF_S) if num_failures > 0 else 0.0
        if not self._has_lasted(run, "backoff", pause_s):
            return
        attempt_id = submission_id(run.id, run.attempt)
        try:
            write_spec(run.run_url, self._resolve(run.spec))
            self._backend.submit(attempt_id, run.kind, run.run_url, run.attempt, run.spec_sha256)
        except (ConflictError, SourceNotFoundError) as error:
            self._fail(run, JobError(code=error.code, fault=error.fault, message=str(error)))
            return
        except BackendRefusedError as error:
            if not self._has_lasted(run, "start", self._limits.start_timeout_s):
                log.warning("%s: %s", run.id, error)
                return
            self._follow_lost(run, f"Ray would not start the driver: {error}")
            return
        is_running = self._store.change_status(run, "running", reason="the cluster has taken it")
        if not is_running and not self.is_wanted(attempt_id):
            self._backend.stop(attempt_id)

    def _observe(self, run: Run) -> None:
        attempt_id = submission_id(run.id, run.attempt)
        found = self._backend.state(attempt_id)
        if found is not None and found[0] == "running":
            if self._has_lasted(run, "silence", self._limits.silence_timeout_s):
                self._backend.stop(attempt_id)
                self._follow_lost(run, f"its driver has said nothing for {self._limits.silence_timeout_s:.0f} s")
            return
        if found is not None and found[0] == "pending":
            if self._has_lasted(run, "start", self._limits.start_timeout_s):
                self._backend.stop(attempt_id)
                self._follow_lost(run, f"Ray did not start the driver within {self._limits.start_timeout_s:.0f} s")
            return
        if not self.intake.try_to_take(run, all_groups=True):
            return  # its last word may be among what could not be read
        verdict = self._store.find_verdict(run.id, run.attempt)
        if verdict is None:
            self._follow_lost(run, _silent_end(found))
        else:
            self._believe(run, verdict)

    def _believe(self, run: Run, verdict: JobEvent) -> None:
        """Do what an attempt's own last word asks for."""
        if verdict.type == "job.finished":
            self._store.change_status(run, "succeeded", reason="its driver says so")
            return
        error = JobError.model_validate({"message": verdict.message, **verdict.data})
        if error.fault == "infrastructure":
            self._follow_lost(run, error.message, error)
        else:
            self._fail(run, error)

    def _follow_lost(self, run: Run, reason: str, error: JobError | None = None) -> None:
        num_attempts = run.attempt - run.attempts_before
        if num_attempts < self._limits.max_attempts:
            log.warning("%s: %s; starting attempt %d", run.id, reason, run.attempt + 1)
            if self._store.change_status(run, "submitting", attempt=run.attempt + 1, reason=reason):
                self._record.lost_attempts[run.kind] += 1
            return
        error = error or JobError(code="driver_lost", fault="infrastructure", message=reason)
        times = f", {num_attempts} times" if num_attempts > 1 else ""
        self._fail(run, error.model_copy(update={"message": error.message + times}))

    def _fail(self, run: Run, error: JobError) -> None:
        if self._store.change_status(run, "failed", error=error):
            self._record.failed_runs[run.kind, error.fault] += 1

    def _end(self, run: Run) -> None:
        """See that a driver ends: because the run was cancelled, or gives way to another."""
        attempt_id = submission_id(run.id, run.attempt)
        found = self._backend.state(attempt_id)
        if found is not None and found[0] in ("pending", "running"):
            self._backend.stop(attempt_id)
            if not self._has_lasted(run, "stop", self._limits.stop_timeout_s):
                return
            reason = f"Ray did not end its driver within {self._limits.stop_timeout_s:.0f} s; it is given up"
        else:
            reason = "its driver has ended"
        self.intake.try_to_take(run, all_groups=True)
        verdict = self._store.find_verdict(run.id, run.attempt)
        is_stopped = verdict is None or verdict.data.get("fault") == "infrastructure"
        if run.status == "preempting" and verdict is not None and not is_stopped:
            self._believe(run, verdict)  # it came to its end before it was stopped
            return
        ended: JobStatus = "cancelled" if run.status == "cancelling" else "queued"
        self._store.change_status(run, ended, reason=reason)


def _silent_end(found: tuple[AttemptState, str] | None) -> str:
    if found is None:
        return "Ray no longer knows the driver"
    return f"the driver ended without a word ({found[0]}): {found[1].strip()}"
