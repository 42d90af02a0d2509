"""Has queued jobs started and running ones give way, as the rules in `service.schedule` decide.

Asks the rules at each look, with what the store and the cluster say at that moment. Replicas that decide at once could
start two jobs where there is room for one; so each start takes a turn, and only if no job was started since the queue
was read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from service.backends.base import Backend
from service.schedule.decide import decide
from service.schedule.demand import Demand, demand_of
from service.schedule.queue import Active, Decision, Resources, Situation, Wait, Waiting
from service.spec.resources import Job, Run
from service.stopwatches import Lasting, Stopwatches
from service.store.store import Store
from service.store.waiting import QueuedRun

log = logging.getLogger(__name__)

_CHARGE_INTERVAL_S = 5.0
_CHARGE_SLACK = 2.0
"""Charged is what has passed by the wall clock, at most so many times what this replica's own clock says."""
_ETA_STEP = 0.1
"""A change by less of what is told is not written: it would be at each look."""


class Admission:
    """Decides who is next.

    Args:
        store: the truth.
        backend: the cluster.
        max_running_jobs: at a time, whatever room there is.
        stopwatches: how long jobs have waited and run.
    """

    def __init__(self, store: Store, backend: Backend, max_running_jobs: int, stopwatches: Stopwatches) -> None:
        self._store, self._backend, self._max_running_jobs = store, backend, max_running_jobs
        self._stopwatches = stopwatches
        self._demands: dict[str, Demand] = {}

    def admit(self, active: Sequence[Run], queued: Sequence[QueuedRun], turn: int) -> bool:
        """Start what may start, and ask what must to give way.

        Args:
            active: all that have begun and not ended.
            queued: all that wait, oldest first.
            turn: of the store, as read before the runs.

        Returns:
            Whether anything was decided that asks for another look at once.
        """
        self._learn(active, queued)
        self._charge(active)
        if not queued:
            return False
        waiting, running = {run.id: run for run in queued}, {run.id: run for run in active}
        decision = decide(self._situation(active, queued))
        for number, run_id in enumerate(decision.start):
            if not self._store.start(waiting[run_id], turn + number):
                return True  # somebody was faster: decide anew
        for run_id, winner in decision.preempt.items():
            log.info("%s gives way to %s", run_id, winner)
            self._store.change_status(running[run_id], "preempting", reason=f"gives way to {winner}")
        self._tell(waiting, decision)
        return bool(decision.start or decision.preempt)

    def _learn(self, active: Sequence[Run], queued: Sequence[QueuedRun]) -> None:
        """What each run needs; a spec never changes, so once is enough."""
        known = self._demands
        found = {run.id: known.get(run.id) or demand_of(run.spec) for run in active}
        found |= {run.id: known[run.id] for run in queued if run.id in known}
        for run_id, spec in self._store.specs([run.id for run in queued if run.id not in found]).items():
            found[run_id] = demand_of(spec)
        self._demands = found

    def _situation(self, active: Sequence[Run], queued: Sequence[QueuedRun]) -> Situation:
        capacity = self._backend.capacity()
        return Situation(
            waiting=[self._waiting(run, capacity) for run in queued if run.id in self._demands],
            active=[self._active(run, capacity) for run in active],
            capacity=capacity,
            max_active=self._max_running_jobs,
            shares=self._store.shares(),
        )

    def _waiting(self, run: QueuedRun, capacity: Resources | None) -> Waiting:
        waited_s = self._stopwatches.elapsed_s(Lasting(run.id, run.attempt, "queued"))
        demand = self._demands[run.id]
        return Waiting(run.id, run.project, run.priority, demand.gpus, demand.needs(capacity), waited_s)

    def _active(self, run: Run, capacity: Resources | None) -> Active:
        is_training = isinstance(run, Job) and run.progress.stage == "train"
        demand = self._demands[run.id]
        return Active(
            run.id,
            run.project,
            run.priority,
            demand.gpus,
            demand.needs(capacity),
            ran_s=self._stopwatches.elapsed_s(Lasting(run.id, run.attempt, "active")),
            remaining_s=run.progress.eta_s if isinstance(run, Job) and is_training else None,
            is_stopping=run.status in ("cancelling", "preempting"),
            is_running=run.status == "running",
        )

    def _charge(self, active: Sequence[Run]) -> None:
        for run in active:
            lasting = Lasting(run.id, run.attempt, "charged")
            if run.status != "running":
                continue
            elapsed_s = self._stopwatches.elapsed_s(lasting)
            if elapsed_s >= _CHARGE_INTERVAL_S:
                self._store.charge(run.id, self._demands[run.id].gpus, _CHARGE_SLACK * elapsed_s)
                self._stopwatches.reset(lasting)

    def _tell(self, queued: dict[str, QueuedRun], decision: Decision) -> None:
        changed = {wait.id: wait for wait in decision.wait if _is_news(queued[wait.id], wait)}
        if changed:
            self._store.place(changed)


def _is_news(run: QueuedRun, wait: Wait) -> bool:
    if (run.queue_position, run.queue_reason) != (wait.position, wait.reason):
        return True
    if run.queue_eta_s is None or wait.eta_s is None:
        return run.queue_eta_s is not wait.eta_s
    return abs(run.queue_eta_s - wait.eta_s) > _ETA_STEP * run.queue_eta_s + 1
