"""Processor time and memory of a process and all it starts, sampled from /proc (Linux)."""

from __future__ import annotations

import bisect
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import psutil

_INTERVAL_S = 0.25


class Sample(NamedTuple):
    """One moment.

    Attributes:
        at_s: on the monotonic clock, which all processes share.
        cpu_s: processor seconds up to then, by role.
        driver_rss: the driver's memory, in bytes.
    """

    at_s: float
    cpu_s: dict[str, float]
    driver_rss: int


class Peak(NamedTuple):
    """The most memory that a process had, in bytes.

    Attributes:
        role: `driver`, `worker`, or the program's name.
        rss: pages in memory, those shared with others too, as the kernel counts them.
        own: without shared memory, which is Ray's object store: the most that was seen in a sample.
    """

    role: str
    rss: int
    own: int


class ProcessPeaks:
    """Watches a process tree while the block runs.

    Args:
        pid: of the driver; Ray's processes are below it.
    """

    def __init__(self, pid: int) -> None:
        self._driver = psutil.Process(pid)
        self._cpu_s: dict[int, float] = {}
        self._driver_rss = 0
        self._samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peaks: dict[int, Peak] = {}

    def __enter__(self) -> ProcessPeaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            for process in self._tree():
                try:
                    self._look_at(process)
                except psutil.NoSuchProcess:
                    continue
            totals: dict[str, float] = defaultdict(float)
            for pid, seconds in self._cpu_s.items():
                totals[self.peaks[pid].role] += seconds
            self._samples.append(Sample(time.monotonic(), dict(totals), self._driver_rss))

    def _tree(self) -> Iterator[psutil.Process]:
        yield self._driver
        try:
            yield from self._driver.children(recursive=True)
        except psutil.NoSuchProcess:
            return

    def _look_at(self, process: psutil.Process) -> None:
        status = _status(process.pid)
        if "VmHWM" not in status:  # it has ended, and nobody has asked for its result yet
            return
        times = process.cpu_times()
        self._cpu_s[process.pid] = times.user + times.system
        if process.pid == self._driver.pid:
            self._driver_rss = status["VmRSS"]
        before = self.peaks.get(process.pid, Peak("", 0, 0))
        own = max(before.own, status["RssAnon"] + status["RssFile"])
        self.peaks[process.pid] = Peak(before.role or self._role(process), status["VmHWM"], own)

    def _role(self, process: psutil.Process) -> str:
        if process.pid == self._driver.pid:
            return "driver"
        line = " ".join(process.cmdline())
        is_worker = (line.startswith("ray::") and "Agent" not in line) or "default_worker.py" in line
        return "worker" if is_worker else process.name()

    def between(self, start_s: float, end_s: float) -> tuple[dict[str, float], int]:
        """Processor seconds by role, and the most memory that the driver had, between two moments of that clock."""
        moments = [sample.at_s for sample in self._samples]
        first, last = (min(bisect.bisect_left(moments, at_s), len(moments) - 1) for at_s in (start_s, end_s))
        before, after = self._samples[first].cpu_s, self._samples[last].cpu_s
        cpu_s = {role: after[role] - before.get(role, 0) for role in after}
        return cpu_s, max(sample.driver_rss for sample in self._samples[first : last + 1])


def _status(pid: int) -> dict[str, int]:
    """Memory of a process in bytes, by the kernel's names."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError as error:
        raise psutil.NoSuchProcess(pid) from error
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
