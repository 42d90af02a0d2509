"""Seconds a step, and what follows from them."""

from __future__ import annotations

import time


class StepClock:
    """Times steps; what happens between them is left out, and the time to go is smoothed.

    Args:
        total_steps: of the run.
        peak_flops: operations a second of all workers; None where it is not known.
    """

    def __init__(self, total_steps: int, peak_flops: float | None) -> None:
        self._total_steps, self._peak_flops = total_steps, peak_flops
        self._mean_s: float | None = None
        self._last_s = 0.0
        self._since = time.monotonic()

    def resume(self) -> None:
        """A step begins."""
        self._since = time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._since

    def tick(self) -> None:
        """It has ended."""
        self._last_s = self.elapsed_s()
        self._mean_s = self._last_s if self._mean_s is None else 0.9 * self._mean_s + 0.1 * self._last_s

    def describe(self, step: int, tokens: float, model_flops: float) -> dict[str, float | None]:
        """Metrics of the step that has just ended.

        Args:
            step: 1-based.
            tokens: of the global batch.
            model_flops: operations of the step.
        """
        mean_s, peak = self._mean_s or self._last_s, self._peak_flops
        return {
            "step": step,
            "total_steps": self._total_steps,
            "step_s": self._last_s,
            "tokens_per_s": tokens / self._last_s,
            "model_flops_utilisation": None if peak is None else model_flops / (self._last_s * peak),
            "eta_s": (self._total_steps - step) * mean_s,
        }
