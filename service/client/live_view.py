"""What redraws itself in a terminal, and elsewhere is a line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live

_LINE_INTERVAL_S = 5.0


class LiveView:
    """Shows how something stands for as long as the block lasts.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last_state: tuple[object, ...] = ()
        self._last_print = 0.0

    def show(self, panel: RenderableType, line: str, state: tuple[object, ...]) -> None:
        """Show how it stands now.

        Args:
            panel: for a terminal.
            line: for elsewhere.
            state: a line is due at once when this has changed.
        """
        if self._live is not None:
            self._live.update(panel)
            return
        now = time.monotonic()
        if state != self._last_state or now - self._last_print > _LINE_INTERVAL_S:
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
            self._last_state, self._last_print = state, now

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
