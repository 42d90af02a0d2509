"""Workers that were lost while they started leave nothing behind.

When a worker or its node is lost between the placement of the group and its first step, Ray Train 2.60 ends the run and
forgets the group: the other workers wait for the lost one, and the room stays reserved until the driver ends, so the
next start would find none.

When Ray Train's own controller is lost while it starts them, nobody else knows what it has reserved: it tells that only
once they run, and gives it no name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group import worker_group as worker_group_module
from ray.util.placement_group import placement_group


class FailedStart(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Ends what is left of a run's workers with the run; comes before all callbacks that a start may fail in.

    Args:
        room: name for what is reserved for them, by which others can free it.
    """

    def __init__(self, room: str) -> None:
        self._room = room
        self._group: WorkerGroup | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Have Ray Train name the placement group that it creates within."""
        worker_group_module.placement_group = partial(placement_group, name=self._room)
        try:
            yield
        finally:
            worker_group_module.placement_group = placement_group

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Remember them; their processes are there, and wait to be set up."""
        self._group = worker_group

    async def before_controller_shutdown(self) -> None:
        """End them, if Ray Train has not."""
        if self._group is not None and self._group.has_started():
            self._group.abort()
