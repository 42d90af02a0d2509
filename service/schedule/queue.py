"""What the scheduler looks at: jobs that wait and run, what the cluster holds, and what projects may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

AGING_S = 1800.0
"""A job that has waited so long counts as one priority higher, and again for each further such time."""
RESERVE_AFTER_S = 600.0
"""A job that has waited so long for room has what becomes free kept for it."""
MIN_RUN_S = 300.0
"""A job runs at least so long before it gives way to another."""
AHEAD_S = 600.0
"""What a project's running jobs are counted as having used beforehand, in seconds: else a project that has used nothing
yet would get everything that is free at that moment."""


class Resources(NamedTuple):
    """Of a cluster, or of a job: all its workers together."""

    cpus: float
    gpus: float = 0.0

    def fits(self, free: Resources) -> bool:
        """Whether so much is free."""
        return self.cpus <= free.cpus + 1e-9 and self.gpus <= free.gpus + 1e-9

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def minus(self, other: Resources) -> Resources:
        """What is left."""
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)

    def __str__(self) -> str:
        parts = [f"{amount:g} {unit}" for amount, unit in ((self.gpus, "GPUs"), (self.cpus, "CPUs")) if amount]
        return " and ".join(parts) or "nothing"


@dataclass(frozen=True)
class Waiting:
    """A job or a sweep in the queue.

    Attributes:
        id: of the job.
        project: whose it is.
        priority: as asked; higher goes first.
        workers: processes that train at a time; each counts as a GPU in quotas.
        needs: what they all need at once.
        waited_s: seconds in the queue.
    """

    id: str
    project: str
    priority: int
    workers: int
    needs: Resources
    waited_s: float = 0.0

    @property
    def aged_priority(self) -> int:
        """With the time that it has waited: nothing waits for ever."""
        return self.priority + int(self.waited_s // AGING_S)


@dataclass(frozen=True)
class Active:
    """A job or a sweep that has, or is about to get, or still has its workers.

    Attributes:
        id, project, priority, workers, needs: as of `Waiting`.
        ran_s: seconds since it was started or taken over.
        remaining_s: seconds to its end; None when not known.
        is_stopping: it was asked to end, and will free what it holds.
        is_running: it runs, and may be asked to give way.
    """

    id: str
    project: str
    priority: int
    workers: int
    needs: Resources
    ran_s: float = 0.0
    remaining_s: float | None = None
    is_stopping: bool = False
    is_running: bool = True


@dataclass(frozen=True)
class Share:
    """What a project may use, and has used.

    Attributes:
        weight: its part of the cluster, relative to other projects'.
        used_worker_s: seconds of workers used, those long ago counted less.
        max_jobs: that run at a time; None is no limit, likewise below.
        max_workers: of all its running jobs together.
        worker_hours_left: that it may still use; None is no limit.
    """

    weight: float = 1.0
    used_worker_s: float = 0.0
    max_jobs: int | None = None
    max_workers: int | None = None
    worker_hours_left: float | None = None


@dataclass(frozen=True)
class Situation:
    """All that a decision follows from.

    Attributes:
        waiting: in the order of arrival.
        active: in any order.
        capacity: all that the cluster has; None when it is not known, or may grow.
        max_active: jobs at a time.
        shares: of projects by id; one that is missing has no limits.
    """

    waiting: Sequence[Waiting]
    active: Sequence[Active] = ()
    capacity: Resources | None = None
    max_active: int = 1
    shares: Mapping[str, Share] = field(default_factory=dict)

    def share(self, project: str) -> Share:
        """Of a project."""
        return self.shares.get(project, Share())


class Wait(NamedTuple):
    """Why a job does not start now."""

    id: str
    position: int
    """1 for the first."""
    reason: str
    eta_s: float | None
    """Seconds until it starts; None when it cannot be told."""


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Attributes:
        start: jobs to start, in this order.
        preempt: of each running job that is to give way, the job that it gives way to.
        wait: the others, in the order in which they would start.
    """

    start: list[str]
    preempt: dict[str, str]
    wait: list[Wait]
