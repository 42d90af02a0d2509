"""Brings the store and the cluster to agree, again and again, whatever crashed in between.

Each look at a job does the one next thing that its state asks for; every decision is a compare-and-set, so two replicas
may look at the same job. The order is always: write the intent to the store, then act. Acts are idempotent. A sweep is
run like a job, by another module.

    queued ──► submitting ──► running ──► succeeded | failed
       │            │            │
       ▼            └──────► cancelling ──► cancelled

A cancelled or failed job that is resumed waits in the queue again, and its next attempt goes on with what is there.
An attempt that Ray lost, or whose driver died without saying why, is followed by another; late writes of the old one go
to the old attempt's own checkpoint directory.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.backends.base import Backend, run_and_attempt, submission_id
from service.errors import BackendUnavailableError, ConflictError, SourceNotFoundError
from service.run_reader import new_segments, read_segment, write_spec
from service.spec.resources import ACTIVE_STATUSES, JobError, Run
from service.store.store import Store

log = logging.getLogger(__name__)


@dataclass
class LookRecord:
    """What the loop tells of itself, for those who watch over it.

    Attributes:
        finished_at: when the last look ended, by `time.monotonic`; at first when the loop was made.
        duration_s: of the last look.
        num_looks, num_failures: looks so far, and how many of them failed, of the whole or of one run.
    """

    finished_at: float = field(default_factory=time.monotonic)
    duration_s: float = 0.0
    num_looks: int = 0
    num_failures: int = 0


class Reconciler:
    """The loop, in a thread of its own.

    Args:
        store: the truth.
        backend: the cluster.
        max_running_jobs: more wait in the queue.
        max_attempts: starts of a job's driver before a lost one counts as failure.
        interval_s: seconds between two looks.
        resolve: makes of a stored spec what its driver reads.
        unwanted_interval_s: seconds between two looks for drivers that nobody wants.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        *,
        max_running_jobs: int,
        max_attempts: int,
        interval_s: float,
        resolve: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda spec: spec,
        unwanted_interval_s: float = 10.0,
    ) -> None:
        self._store, self._backend, self._resolve = store, backend, resolve
        self._max_running_jobs, self._max_attempts, self._interval_s = max_running_jobs, max_attempts, interval_s
        self._unwanted_interval_s = unwanted_interval_s
        self._last_search = -math.inf
        self.record = LookRecord()
        self._known_segments: dict[str, set[str]] = {}
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop; jobs go on running."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """Look now: something was asked."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self.reconcile()
            except Exception:
                self.record.num_failures += 1
                log.exception("the look at all jobs failed; the next follows in %.1f s", self._interval_s)
            self._wake.wait(self._interval_s)

    def reconcile(self) -> None:
        """Look at every unfinished job once, oldest first, and now and then for drivers that nobody wants."""
        start = time.monotonic()
        self._look_at_all()
        record, now = self.record, time.monotonic()
        record.finished_at, record.duration_s, record.num_looks = now, now - start, record.num_looks + 1

    def _look_at_all(self) -> None:
        runs = self._store.unfinished()
        running = sum(run.status in ACTIVE_STATUSES for run in runs)
        for run in runs:
            if run.status == "queued":
                if running < self._max_running_jobs:
                    running += self._store.change_status(
                        run, "submitting", attempt=run.attempt + 1, reason="its turn has come"
                    )
                    self._wake.set()
            else:
                self._look_at(run)
        unfinished = {run.id for run in runs}
        self._known_segments = {run_id: names for run_id, names in self._known_segments.items() if run_id in unfinished}
        if time.monotonic() - self._last_search > self._unwanted_interval_s:
            self._last_search = time.monotonic()
            self._stop_unwanted_drivers()

    def _look_at(self, run: Run) -> None:
        """One step of one job; whatever goes wrong must not keep the others waiting, nor a cancel."""
        self._try_to_ingest(run)
        try:
            self._advance(run)
        except BackendUnavailableError as error:
            self.record.num_failures += 1
            log.warning("%s: %s", run.id, error)
        except Exception:
            self.record.num_failures += 1
            log.exception("%s: a look at it failed; the next follows in %.1f s", run.id, self._interval_s)

    def _advance(self, run: Run) -> None:
        if run.status == "submitting":
            self._submit(run)
        elif run.status == "running":
            self._observe(run)
        elif run.status == "cancelling":
            self._cancel(run)

    def _submit(self, run: Run) -> None:
        attempt_id = submission_id(run.id, run.attempt)
        try:
            write_spec(run.run_url, self._resolve(run.spec))
            self._backend.submit(attempt_id, run.kind, run.run_url, run.attempt, run.spec_sha256)
        except (ConflictError, SourceNotFoundError) as error:
            self._store.change_status(
                run, "failed", error=JobError(code=error.code, fault=error.fault, message=str(error))
            )
            return
        is_running = self._store.change_status(run, "running", reason="the cluster has taken it")
        if not is_running and not self._is_wanted(attempt_id):
            self._backend.stop(attempt_id)

    def _observe(self, run: Run) -> None:
        found = self._backend.state(submission_id(run.id, run.attempt))
        if found is not None and found[0] in ("pending", "running"):
            return
        if not self._try_to_ingest(run):
            return  # its last word may be among what could not be read
        verdict = self._store.find_verdict(run.id, run.attempt)
        if verdict is None:
            reason = (
                f"the driver ended without a word ({found[0]}): {found[1].strip()}"
                if found
                else "Ray no longer knows the driver"
            )
            self._follow_lost(run, reason)
        elif verdict.type == "job.finished":
            self._store.change_status(run, "succeeded", reason="its driver says so")
        else:
            error = JobError.model_validate({"message": verdict.message, **verdict.data})
            self._store.change_status(run, "failed", error=error)

    def _follow_lost(self, run: Run, reason: str) -> None:
        if run.attempt - run.attempts_before < self._max_attempts:
            log.warning("%s: %s; starting attempt %d", run.id, reason, run.attempt + 1)
            self._store.change_status(run, "submitting", attempt=run.attempt + 1, reason=reason)
            return
        error = JobError(code="driver_lost", fault="infrastructure", message=f"{reason}, {run.attempt} times")
        self._store.change_status(run, "failed", error=error)

    def _cancel(self, run: Run) -> None:
        attempt_id = submission_id(run.id, run.attempt)
        found = self._backend.state(attempt_id)
        if found is None or found[0] in ("stopped", "succeeded", "failed"):
            self._try_to_ingest(run)
            self._store.change_status(run, "cancelled", reason="its driver has ended")
        else:
            self._backend.stop(attempt_id)

    def _stop_unwanted_drivers(self) -> None:
        """Stop drivers of jobs that have ended and of earlier attempts.

        They are left by a submit that Ray took after its answer was given up, and by a Ray head that came back.
        """
        try:
            for attempt_id in self._backend.active():
                if not self._is_wanted(attempt_id):
                    log.warning("%s runs and nobody waits for it; stopping it", attempt_id)
                    self._backend.stop(attempt_id)
        except BackendUnavailableError as error:
            log.warning("looking for unwanted drivers: %s", error)

    def _is_wanted(self, attempt_id: str) -> bool:
        """Whether a driver is its job's current attempt; jobs of another store are not ours to judge."""
        run_id, attempt = run_and_attempt(attempt_id)
        run = self._store.find(run_id)
        return run is None or (not run.is_terminal and run.attempt == attempt)

    def _try_to_ingest(self, run: Run) -> bool:
        """Take in the job's new events; False when the run directory or the store did not answer."""
        try:
            self._ingest(run)
        except Exception:
            log.exception("%s: its events could not be taken in; the next try follows", run.id)
            return False
        return True

    def _ingest(self, run: Run) -> None:
        if run.id not in self._known_segments:
            self._known_segments[run.id] = self._store.ingested_segments(run.id)
        known = self._known_segments[run.id]
        for name in new_segments(run.run_url, known):
            try:
                events = read_segment(run.run_url, name)
            except ValueError:
                log.exception("%s: segment %s holds no events that this version knows; passed over", run.id, name)
                events = []
            self._store.ingest_segment(run.id, name, events)
            known.add(name)
