"""Experts divided among threads, each with single-threaded arithmetic of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch

MAX_THREADS = 8
"""Every product takes the interpreter's lock for a moment; among more threads the wait would outweigh the gain."""


def for_parts(function: Callable[[range], None], counts: Sequence[int]) -> None:
    """Call the function with each part of the experts, on as many threads as PyTorch may use.

    Args:
        function: called with consecutive experts; together the calls cover all.
        counts: copies of each expert, to make equal parts.
    """
    num_threads = min(torch.get_num_threads(), MAX_THREADS)
    parts = parts_of(counts, num_threads)
    if num_threads == 1:
        function(parts[0])
    else:
        list(_threads(num_threads).map(function, parts))  # raises what a thread raised


def parts_of(counts: Sequence[int], num_parts: int) -> list[range]:
    """Consecutive ranges of experts with about equal numbers of copies; every expert is in one."""
    total, done, starts = sum(counts), 0, [0]
    for index, count in enumerate(counts):
        done += count
        if done * num_parts >= total * len(starts) and len(starts) < num_parts:
            starts.append(index + 1)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


@cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads whose own products are single-threaded."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads, "expert", initializer=lambda: torch.set_num_threads(1))
    # what one thread sets is also what threads born later begin with: have all of these born, then set it back
    all_are_born = Barrier(num_threads)
    list(pool.map(lambda _: all_are_born.wait(), range(num_threads)))
    torch.set_num_threads(before)
    return pool
