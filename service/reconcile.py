"""Brings the store and the cluster to agree, again and again, whatever crashed in between.

Each look at a job does the one next thing that its state asks for; every decision is a compare-and-set, so two replicas
may look at the same job. The order is always: write the intent to the store, then act. Acts are idempotent.

    queued ──► submitting ──► running ──► succeeded | failed
       │            │            │
       ▼            └──────► cancelling ──► cancelled

An attempt that Ray lost, or whose driver died without saying why, is followed by another; late writes of the old one go
to the old attempt's own checkpoint directory.
"""

from __future__ import annotations

import logging
import threading

from service.backends.base import Backend, submission_id
from service.errors import BackendUnavailableError
from service.run_reader import new_segments, read_report, write_spec
from service.spec.resources import ACTIVE_STATUSES, Job, JobError
from service.store.store import Store

log = logging.getLogger(__name__)


class Reconciler:
    """The loop, in a thread of its own.

    Args:
        store: the truth.
        backend: the cluster.
        max_running_jobs: more wait in the queue.
        max_attempts: starts of a job's driver before a lost one counts as failure.
        interval_s: seconds between two looks.
    """

    def __init__(
        self, store: Store, backend: Backend, *, max_running_jobs: int, max_attempts: int, interval_s: float
    ) -> None:
        self._store, self._backend = store, backend
        self._max_running_jobs, self._max_attempts, self._interval_s = max_running_jobs, max_attempts, interval_s
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
                log.exception("the store did not answer; the next look follows in %.1f s", self._interval_s)
            self._wake.wait(self._interval_s)

    def reconcile(self) -> None:
        """Look at every unfinished job once, oldest first."""
        jobs = self._store.unfinished_jobs()
        running = sum(job.status in ACTIVE_STATUSES for job in jobs)
        for job in jobs:
            if job.status == "queued":
                if running < self._max_running_jobs:
                    running += self._store.change_status(job, "submitting", attempt=1)
                    self._wake.set()
            else:
                self._look_at(job)

    def _look_at(self, job: Job) -> None:
        """One step of one job; whatever goes wrong must not keep the others waiting."""
        try:
            self._ingest(job)
            self._advance(job)
        except BackendUnavailableError as error:
            log.warning("%s: %s", job.id, error)
        except Exception:
            log.exception("%s: a look at it failed; the next follows in %.1f s", job.id, self._interval_s)

    def _advance(self, job: Job) -> None:
        if job.status == "submitting":
            self._submit(job)
        elif job.status == "running":
            self._observe(job)
        elif job.status == "cancelling":
            self._cancel(job)

    def _submit(self, job: Job) -> None:
        write_spec(job.run_url, job.spec)
        attempt_id = submission_id(job.id, job.attempt)
        self._backend.submit(attempt_id, job.run_url, job.attempt, job.spec.sha256())
        self._store.change_status(job, "running")

    def _observe(self, job: Job) -> None:
        found = self._backend.state(submission_id(job.id, job.attempt))
        if found is None:
            self._follow_lost(job, "Ray no longer knows the driver")
            return
        state, message = found
        if state in ("pending", "running"):
            return
        self._ingest(job)
        verdict = self._store.find_failure(job.id, job.attempt)
        if state == "succeeded" and read_report(job.run_url) is not None:
            self._store.change_status(job, "succeeded")
        elif verdict is not None:
            self._store.change_status(job, "failed", error=verdict)
        else:
            self._follow_lost(job, f"the driver ended without a word ({state}): {message.strip()}")

    def _follow_lost(self, job: Job, reason: str) -> None:
        if job.attempt < self._max_attempts:
            log.warning("%s: %s; starting attempt %d", job.id, reason, job.attempt + 1)
            self._store.change_status(job, "submitting", attempt=job.attempt + 1)
            return
        error = JobError(code="driver_lost", fault="infrastructure", message=f"{reason}, {job.attempt} times")
        self._store.change_status(job, "failed", error=error)

    def _cancel(self, job: Job) -> None:
        attempt_id = submission_id(job.id, job.attempt)
        found = self._backend.state(attempt_id)
        if found is None or found[0] in ("stopped", "succeeded", "failed"):
            self._ingest(job)
            self._store.change_status(job, "cancelled")
        else:
            self._backend.stop(attempt_id)

    def _ingest(self, job: Job) -> None:
        known = self._known_segments.setdefault(job.id, self._store.ingested_segments(job.id))
        for name, events in new_segments(job.run_url, known):
            self._store.ingest_segment(job.id, name, events)
            known.add(name)
