"""Events that are told to the trackers too, each in a thread of its own: none can hold the training up, or end it.

A tracker that fails is warned of once, as an event, and left out from then on. At the end all together have some
seconds for what is left, so that a server that does not answer keeps no worker from ending.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from ray_jobs.fence import Fence
from ray_jobs.run_directory import EventWriter, RunDirectory
from ray_jobs.track.scalars import Point, point_of
from ray_jobs.track.trackers import Tracker, configured, tracker
from service.spec.event import EventType
from service.spec.job import JobSpec

_END_S = 30.0


class TrackerThread(threading.Thread):
    """Opens a tracker and feeds it, until it fails or is closed.

    Args:
        name: of the tracker.
        open_tracker: opens it, in the thread.
        warn: called with the reason when it is left out.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._open, self._warn = open_tracker, warn
        self._points: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self._is_open, self._has_failed = True, False

    def put(self, point: Point) -> None:
        """Have it kept."""
        if self._is_open:
            self._points.put(point)

    def end(self, *, failed: bool) -> None:
        """Have it closed, behind all that was put."""
        self._has_failed = failed
        self._points.put(None)

    def leave_out(self, reason: str) -> None:
        """Warn, and take no more."""
        self._is_open = False
        self._warn(f"{self.name} is left out: {reason}")

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            tracker = self._open()
            while True:
                points = [self._points.get()]
                while not self._points.empty():
                    points.append(self._points.get())
                tracker.log([point for point in points if point is not None])
                if None in points:
                    tracker.close(failed=self._has_failed)
                    return
        except Exception as error:  # noqa: BLE001  whatever a tracker raises, the job goes on without it
            self.leave_out(f"{type(error).__name__}: {error}")


class TrackedEventWriter(EventWriter):
    """An event writer whose `train.step` and evaluations go to the job's trackers as well.

    They are opened with `train.started`, so a worker that writes no events has none.

    Args:
        run: the run directory.
        writer: as of `EventWriter`.
        attempt: the job's.
        spec: says which trackers.
        fence: as of `EventWriter`.
    """

    def __init__(self, run: RunDirectory, writer: str, attempt: int, spec: JobSpec, fence: Fence | None = None) -> None:
        super().__init__(run, writer, attempt, fence=fence)
        self._tracked_run, self._spec = run, spec
        self._trackers: list[TrackerThread] = []
        self._failed = False

    def emit(self, type: EventType, *, stage: str | None = None, message: str = "", **data: Any) -> None:
        """See `EventWriter`."""
        super().emit(type, stage=stage, message=message, **data)
        if type == "train.started":
            self._start(data["start_step"])
        if self._trackers and (point := point_of(type, data)) is not None:
            for one in self._trackers:
                one.put(point)

    def close(self) -> None:
        """See `EventWriter`."""
        for one in self._trackers:
            one.end(failed=self._failed)
        deadline = time.monotonic() + _END_S
        for one in self._trackers:
            one.join(max(0.0, deadline - time.monotonic()))
            if one.is_alive():
                one.leave_out(f"it did not take the last steps within {_END_S:.0f} s")
        super().close()

    def _start(self, start_step: int) -> None:
        for name in configured(self._spec.track):
            open_tracker = partial(tracker, name, self._tracked_run, self._spec, start_step)
            self._trackers.append(TrackerThread(name, open_tracker, self._warn))
            self._trackers[-1].start()

    def _warn(self, message: str) -> None:
        super().emit("job.warning", stage="train", message=message, kind="tracker_failed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = kind is not None
        super().__exit__(kind, error, trace)
