"""Decides what starts, what gives way, and why the others wait.

The order is by priority, which rises with the time waited; within a priority the project that has used least goes
first, by the weights of the projects; within a project the one that came first. A job starts only when there is room
for all its workers. One that finds none lets smaller ones pass at first; when it has waited `RESERVE_AFTER_S`, what
becomes free is kept for it. A job that its own project's quota holds back keeps nobody waiting.

A job for which there is no room stops running ones of lower priority, the lowest and youngest first, and no more than
needed. Only priorities as asked count for that, not the time waited: else two jobs could stop each other for ever.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence

from service.schedule.queue import (
    AHEAD_S,
    MIN_RUN_S,
    RESERVE_AFTER_S,
    Active,
    Decision,
    Resources,
    Situation,
    Wait,
    Waiting,
)


def decide(situation: Situation) -> Decision:
    """What to do now; the same situation gives the same decision."""
    return _Round(situation).decide()


def _order(situation: Situation) -> Iterator[Waiting]:
    """The queue in the order in which it is served; what comes first counts as used by its project for what follows."""
    used = defaultdict[str, float](float)
    for project in {job.project for job in situation.waiting} | {job.project for job in situation.active}:
        used[project] = situation.share(project).used_worker_s
    for active in situation.active:
        used[active.project] += active.workers * AHEAD_S
    levels = defaultdict[int, dict[str, deque[tuple[int, Waiting]]]](dict)
    for number, job in enumerate(situation.waiting):
        levels[job.aged_priority].setdefault(job.project, deque()).append((number, job))
    for _, queues in sorted(levels.items(), reverse=True):
        while queues:
            project = min(queues, key=lambda name: (used[name] / situation.share(name).weight, queues[name][0][0]))
            _, job = queues[project].popleft()
            used[project] += job.workers * AHEAD_S
            if not queues[project]:
                del queues[project]
            yield job


class _Round:
    """One decision in the making: what is left after what was decided so far."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        self._slots = situation.max_active - len(situation.active)
        self._free = situation.capacity
        for job in situation.active:
            self._take(job.needs)
        self._num_jobs = Counter(job.project for job in situation.active)
        self._num_workers = Counter[str]()
        for job in situation.active:
            self._num_workers[job.project] += job.workers
        self._victims: dict[str, str] = {}
        self._most_free: dict[int, tuple[int, Resources]] = {}
        self._kept_for: Waiting | None = None

    def _take(self, needs: Resources) -> None:
        if self._free is not None:
            self._free = self._free.minus(needs)

    def decide(self) -> Decision:
        start: list[str] = []
        blocked: list[tuple[Waiting, str]] = []
        for_room: list[Waiting] = []
        for job in _order(self._situation):
            if reason := self._quota_reason(job):
                blocked.append((job, reason))
                continue
            if reason := self._room_reason(job):
                blocked.append((job, reason))
                for_room.append(job)
                continue
            start.append(job.id)
            self._slots -= 1
            self._take(job.needs)
            self._num_jobs[job.project] += 1
            self._num_workers[job.project] += job.workers
        etas = _etas(self._situation, start, for_room)
        wait = [Wait(job.id, n, reason, etas.get(job.id)) for n, (job, reason) in enumerate(blocked, 1)]
        return Decision(start, self._victims, wait)

    def _quota_reason(self, job: Waiting) -> str | None:
        """How the job's own project holds it back."""
        share = self._situation.share(job.project)
        if share.max_jobs is not None and self._num_jobs[job.project] >= share.max_jobs:
            return f"project {job.project} has {self._num_jobs[job.project]} jobs running, of {share.max_jobs} it may"
        running = self._num_workers[job.project]
        if share.max_workers is not None and running + job.workers > share.max_workers:
            return f"needs {job.workers} GPUs; project {job.project} uses {running}, of {share.max_workers} that it may"
        if share.worker_hours_left is not None and share.worker_hours_left <= 0:
            return f"project {job.project} has used up its GPU hours"
        return None

    def _room_reason(self, job: Waiting) -> str | None:
        """Why the cluster has no room, after having stopped what is to give way."""
        if self._kept_for is not None:
            return f"room is kept for {self._kept_for.id}, which comes first"
        has_room = self._free is None or job.needs.fits(self._free)
        if self._slots > 0 and has_room:
            return None
        if self._make_room(job):
            self._kept_for = job
            return "waits for jobs of lower priority to give way"
        if self._slots <= 0:
            return f"{len(self._situation.active)} jobs run, of {self._situation.max_active} at a time"
        if job.waited_s >= RESERVE_AFTER_S and self._can_ever_fit(job):
            self._kept_for = job
        assert self._free is not None, "else there is room"
        free = Resources(max(self._free.cpus, 0), max(self._free.gpus, 0))
        return f"needs {job.needs} at once; free are {free}"

    def _can_ever_fit(self, job: Waiting) -> bool:
        return self._situation.capacity is None or job.needs.fits(self._situation.capacity)

    def _make_room(self, job: Waiting) -> bool:
        """Stop what must give way to a job; False when that would not help."""
        if not self._all_may_suffice(job):
            return False
        leaving, candidates = self._leaving(), self._candidates(job.priority)
        chosen: list[Active] = []
        while not self._would_fit(job, [*leaving, *chosen]):
            chosen.append(candidates.pop(0))
        for active in list(chosen):  # the first ones may have been too small to help
            fewer = [other for other in chosen if other is not active]
            if self._would_fit(job, [*leaving, *fewer]):
                chosen = fewer
        self._victims |= {active.id: job.id for active in chosen}
        self._most_free.clear()
        return True

    def _leaving(self) -> list[Active]:
        return [active for active in self._situation.active if active.is_stopping or active.id in self._victims]

    def _candidates(self, priority: int) -> list[Active]:
        """Those that may be asked to give way to such a priority, in the order in which they are."""
        found = [
            active
            for active in self._situation.active
            if active.is_running
            and not active.is_stopping
            and active.id not in self._victims
            and active.priority < priority
            and active.ran_s >= MIN_RUN_S
        ]
        return sorted(found, key=lambda active: (active.priority, active.ran_s, active.id))

    def _all_may_suffice(self, job: Waiting) -> bool:
        """Whether there would be room if all went that may be asked to; once for each priority, for queues are long."""
        if job.priority not in self._most_free:
            going = [*self._leaving(), *self._candidates(job.priority)]
            freed = Resources(sum(each.needs.cpus for each in going), sum(each.needs.gpus for each in going))
            self._most_free[job.priority] = (len(going), freed)
        slots, freed = self._most_free[job.priority]
        return self._slots + slots > 0 and (self._free is None or job.needs.fits(self._free.plus(freed)))

    def _would_fit(self, job: Waiting, leaving: Sequence[Active]) -> bool:
        free = self._free
        if free is not None:
            for active in leaving:
                free = free.plus(active.needs)
        return self._slots + len(leaving) > 0 and (free is None or job.needs.fits(free))


def _etas(situation: Situation, start: Sequence[str], blocked: Sequence[Waiting]) -> dict[str, float]:
    """When the blocked would start, in order, as running ones end; told as long as that is known."""
    if start or any(job.remaining_s is None for job in situation.active):
        return {}  # nobody knows yet how long what starts will take
    free, slots = situation.capacity, situation.max_active - len(situation.active)
    for active in situation.active:
        free = free and free.minus(active.needs)
    ending = sorted(situation.active, key=lambda job: job.remaining_s or 0.0)
    etas: dict[str, float] = {}
    now = 0.0
    for job in blocked:
        while slots <= 0 or (free is not None and not job.needs.fits(free)):
            if not ending:
                return etas
            ended = ending.pop(0)
            now = ended.remaining_s or 0.0
            slots += 1
            free = free and free.plus(ended.needs)
        slots -= 1
        free = free and free.minus(job.needs)
        etas[job.id] = now
    return etas
