"""What a worker measures of itself in a step: the seconds of its phases, and its memory.

On GPUs a phase is timed by events in the stream of computation, which are read when the step is over, so that the host
never waits within it. On CPUs nothing runs behind the host's back, and its clock will do.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

Phase = Literal["forward", "backward", "optimizer"]


class Phases:
    """The seconds of one step's phases.

    Args:
        device: where the worker computes.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._spans: list[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """The block is a part of the phase."""
        if self._on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._spans.append((phase, start, end))
        else:
            start_s = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - start_s

    def describe(self) -> dict[str, float]:
        """Seconds by metric, once the step is over; waits for the GPU."""
        for phase, start, end in self._spans:
            end.synchronize()
            self._seconds[phase] += start.elapsed_time(end) / 1000
        self._spans.clear()
        return {f"{phase}_s": seconds for phase, seconds in self._seconds.items()}


def peak_memory_bytes(device: torch.device | str) -> int:
    """Most memory that was in use: on a GPU by this process's tensors in this step, else resident since it began."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # not `ru_maxrss`, which a process inherits of the one that started it
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])
