"""Brings the store and the cluster to agree, again and again, whatever crashed in between.

Each look takes every unfinished job one step further (`service.attempts` has the steps), and now and then looks for
drivers that nobody wants. It is a loop without memory that matters: whoever starts it again, and be it twice, goes on.
A sweep is run like a job, by another module.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from service.admission import Admission
from service.attempts import DEFAULT_LIMITS, Attempts, Limits, Resolve
from service.backends.base import Backend
from service.errors import BackendRefusedError, BackendUnavailableError
from service.look_record import LookRecord
from service.spec.resources import ACTIVE_STATUSES, Run
from service.stopwatches import Clock
from service.store.store import Store

log = logging.getLogger(__name__)

_REST = 9.0
"""Times what the last look took: so much is left to those who ask, however often they wake the loop."""


class Reconciler:
    """The loop, in a thread of its own.

    Args:
        store: the truth.
        backend: the cluster.
        max_running_jobs: more wait in the queue.
        interval_s: seconds between two looks.
        limits: of each attempt.
        unwanted_interval_s: seconds between two looks for drivers that nobody wants.
        resolve: makes of a stored spec what its driver reads.
        clock: for all that lasts; a wall clock may step, and must decide nothing.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        *,
        max_running_jobs: int,
        interval_s: float,
        limits: Limits = DEFAULT_LIMITS,
        unwanted_interval_s: float = 10.0,
        resolve: Resolve = lambda spec: spec,
        clock: Clock = time.monotonic,
    ) -> None:
        self._store, self._backend = store, backend
        self._interval_s, self._clock = interval_s, clock
        self._unwanted_interval_s = unwanted_interval_s
        self._last_search = -math.inf
        self.record = LookRecord()
        self._attempts = Attempts(store, backend, limits, resolve=resolve, clock=clock, record=self.record)
        self._admission = Admission(store, backend, max_running_jobs, self._attempts.stopwatches)
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
            self._stopped.wait(min(_REST * self.record.duration_s, self._interval_s))
            self._wake.wait(self._interval_s)

    def reconcile(self) -> None:
        """Look at every unfinished job once, oldest first, and now and then for drivers that nobody wants."""
        start = time.monotonic()
        self._look_at_all()
        record, now = self.record, time.monotonic()
        record.finished_at, record.duration_s, record.num_looks = now, now - start, record.num_looks + 1

    def _look_at_all(self) -> None:
        turn = self._store.turn()
        active, queued = self._store.unfinished(ACTIVE_STATUSES), self._store.queued()
        if self._admission.admit(active, queued, turn):
            self._wake.set()
        for run in active:
            self._look_at(run)
        unfinished = {run.id for run in (*active, *queued)}
        self._attempts.intake.keep(unfinished)
        self._attempts.stopwatches.keep(unfinished)
        if self._clock() - self._last_search > self._unwanted_interval_s:
            self._last_search = self._clock()
            self._stop_unwanted_drivers()

    def _look_at(self, run: Run) -> None:
        """One step of one job; whatever goes wrong must not keep the others waiting."""
        try:
            self._attempts.step(run)
        except BackendUnavailableError as error:
            self.record.num_failures += 1
            log.warning("%s: %s", run.id, error)
        except Exception:
            self.record.num_failures += 1
            log.exception("%s: a look at it failed; the next follows in %.1f s", run.id, self._interval_s)

    def _stop_unwanted_drivers(self) -> None:
        """Stop drivers of jobs that have ended and of earlier attempts.

        They are left by a submit that Ray took after its answer was given up, and by a Ray head that came back.
        """
        try:
            active = self._backend.active()
            self.record.is_cluster_up = True
            for attempt_id in active:
                if not self._attempts.is_wanted(attempt_id):
                    log.warning("%s runs and nobody waits for it; stopping it", attempt_id)
                    self._backend.stop(attempt_id)
        except BackendUnavailableError as error:
            self.record.is_cluster_up = isinstance(error, BackendRefusedError)
            log.warning("looking for unwanted drivers: %s", error)
