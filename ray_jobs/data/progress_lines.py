"""How far preparation is, with the time that the task at hand still needs: a bar in a terminal, elsewhere lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_INTERVAL_S = 5.0


class ProgressLines:
    """A progress callback that prints.

    Args:
        console: where to.
        clock: tells seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        columns = (TextColumn("{task.description:16}"), BarColumn(), TextColumn("{task.fields[state]}"))
        self._bars = Progress(*columns, console=console) if console.is_terminal else None
        self._task: str | None = None
        self._start = self._last = 0.0

    def __call__(self, task: str, done: int, total: int | None, unit: str) -> None:
        """Show it."""
        now = self._clock()
        is_new = task != self._task
        if is_new:
            self._task, self._start = task, now
        state = describe(done, total, unit, now - self._start)
        if self._bars is not None:
            self._draw(is_new, task, done, total, state)
        elif is_new or done == total or now - self._last >= _INTERVAL_S:
            self._console.print(f"{task}: {state}", soft_wrap=True, highlight=False, markup=False)
            self._last = now

    def _draw(self, is_new: bool, task: str, done: int, total: int | None, state: str) -> None:
        assert self._bars is not None
        if is_new:
            self._bars.add_task(task, total=total, state=state)
        self._bars.update(self._bars.task_ids[-1], completed=done, total=total, state=state)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def describe(done: int, total: int | None, unit: str, elapsed_s: float) -> str:
    """Amount done and, where it can be told from the pace so far, the time to the end."""
    if total is None:
        return f"{done:,} {unit}"
    state = f"{done:,}/{total:,} {unit}"
    if not (0 < done < total and elapsed_s):  # the first report of a task tells of no pace
        return state
    minutes, seconds = divmod(round(elapsed_s / done * (total - done)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{state}  ETA {hours}:{minutes:02}:{seconds:02}" if hours else f"{state}  ETA {minutes}:{seconds:02}"
