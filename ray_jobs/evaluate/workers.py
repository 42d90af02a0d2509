"""Work that the training workers share: dealt out in turn, gathered again, and never waited for in silence.

A collective has a deadline (10 minutes with NCCL), and a judge or a slow program may take longer. So nobody waits for
another in one long collective: all come together every few seconds until everyone has finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch.distributed as dist

from service.errors import SleddogError

T = TypeVar("T")

TURN_S = 5.0
"""Longest wait before the workers come together again."""
_logger = logging.getLogger(__name__)


class WorkFailedError(Exception):
    """Work failed on some worker; all workers get the same one, with the reason in words."""


def rank() -> int:
    """This worker's number; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_workers() -> int:
    """All workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def my_share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item of n workers; some workers get one more than others, or the only one."""
    return items[rank() :: num_workers()]


def gather(mine: Sequence[T]) -> list[T]:
    """The items whose shares the workers hold, in order; all must call, and all get all."""
    return deal_back(_gather_objects(list(mine)))


def deal_back(shares: Sequence[Sequence[T]]) -> list[T]:
    """The items whose shares, one a worker, these are."""
    items: list[Any] = [None] * sum(map(len, shares))
    for number, share in enumerate(shares):
        items[number :: len(shares)] = share
    return items


def on_all(work: Callable[[], T]) -> list[T]:
    """Do something on every worker at once; all must call, and all get all results, in order of rank.

    Raises:
        WorkFailedError: it raised on any of them.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_attempt, work)
        while True:
            wait([future], timeout=TURN_S)
            if all(_gather_objects(future.done())):
                break
    results = []
    for result, reason in _gather_objects(future.result()):
        if reason is not None:
            raise WorkFailedError(reason)
        results.append(result)
    return results


def on_first(work: Callable[[], T]) -> T:
    """Do something on worker 0 alone; all must call, and all get the result.

    Raises:
        WorkFailedError: it raised.
    """
    results: list[Any] = on_all(work if rank() == 0 else lambda: None)
    first: T = results[0]
    return first


def from_first(value: T) -> T:
    """Worker 0's value; all must call."""
    first: T = _gather_objects(value)[0]
    return first


def reason_of(error: BaseException) -> str:
    """An error in words; one that nobody raised on purpose is logged with its trace."""
    if isinstance(error, SleddogError):
        return str(error)
    _logger.error("an evaluation failed", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Result, or the reason of the failure: an error must not keep a worker from meeting the others."""
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001  raised again, by its reason, on all workers
        return None, reason_of(error)


def _gather_objects(mine: Any) -> list[Any]:
    if not dist.is_initialized():
        return [mine]
    objects: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(objects, mine)
    return objects
