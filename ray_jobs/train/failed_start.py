"""Workers that were lost while they started leave nothing behind.

When a worker or its node is lost between the placement of the group and its first step, Ray Train 2.60 ends the run and
forgets the group: the other workers wait for the lost one, and the room stays reserved until the driver ends, so the
next start would find none.
"""

from __future__ import annotations

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup


class FailedStart(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Ends what is left of a run's workers with the run; comes before all callbacks that a start may fail in."""

    _group: WorkerGroup | None = None

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Remember them; their processes are there, and wait to be set up."""
        self._group = worker_group

    async def before_controller_shutdown(self) -> None:
        """End them, if Ray Train has not."""
        if self._group is not None and self._group.has_started():
            self._group.abort()
