"""Lets code that runs on worker 0 alone use a model that only all workers together can compute."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Queue
from typing import Any, NamedTuple, TypeVar

from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.workers import TURN_S, WorkFailedError, from_first, rank, reason_of

T = TypeVar("T")


class _Order(NamedTuple):
    """What all workers do next: call a method of the model; without one, wait on, or stop."""

    method: str | None = None
    arguments: tuple[Any, ...] = ()
    is_last: bool = False


class Relay:
    """Brings one thread's requests to all workers.

    Args:
        model: answers them.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._orders: Queue[_Order] = Queue()
        self._answers: Queue[Any] = Queue()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have all workers call a method of the model; for the thread's work, one request at a time.

        Raises:
            ValueError: the method raised it.
        """
        self._orders.put(_Order(method, arguments))
        answer = self._answers.get()
        if isinstance(answer, ValueError):
            raise answer
        return answer

    def serve(self, work: Callable[[], T]) -> T | None:
        """Do work on worker 0, and what it asks for on all; all workers must call.

        Returns:
            On worker 0 what the work returned, None on the others.

        Raises:
            WorkFailedError: the work raised; on all workers.
        """
        result, reason = None, None
        with ThreadPoolExecutor(1) as pool:
            done: Future[T] | None = None
            if rank() == 0:
                done = pool.submit(work)
                done.add_done_callback(lambda _: self._orders.put(_Order(is_last=True)))
            while not (order := from_first(self._next() if done else _Order())).is_last:
                if order.method is not None:
                    self._carry_out(order)
        if done is not None:
            error = done.exception()
            result, reason = (done.result(), None) if error is None else (None, reason_of(error))
        if (reason := from_first(reason)) is not None:
            raise WorkFailedError(reason)
        return result

    def _next(self) -> _Order:
        try:
            return self._orders.get(timeout=TURN_S)
        except Empty:
            return _Order()

    def _carry_out(self, order: _Order) -> None:
        assert order.method is not None
        try:
            answer = getattr(self._model, order.method)(*order.arguments)
        except ValueError as error:  # of the arguments, before the model is asked: the same on all workers
            answer = error
        if rank() == 0:
            self._answers.put(answer)
