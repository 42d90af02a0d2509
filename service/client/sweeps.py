"""`client.sweeps`, and the handle on one sweep that `create` and `get` give.

    sweep = client.sweeps.create(load_sweep("sweep.yaml"))
    sweep.wait(progress=True)
    job = client.jobs.create_from(sweep.best())

A handle's fields say how the sweep stood when it was asked for; its methods ask anew.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Self, TypeVar

from pydantic import PrivateAttr

from service.client import calls
from service.client.calls import Call
from service.client.runs import PAGE, AsyncRuns, AsyncSender, Runs, Sender
from service.errors import NotFoundError
from service.spec.job import JobSpec
from service.spec.promotion import Promotion, best_of
from service.spec.resources import JobEvent, Page, Sweep
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, SweepResults, Trial, TrialStatus

Item = TypeVar("Item", Trial, Candidate)


class Sweeps(Runs[Sweep]):
    """`client.sweeps`."""

    def __init__(self, client: Sender) -> None:
        super().__init__(client, calls.SWEEPS)

    def create(self, spec: SweepSpec, *, priority: int = 0, idempotency_key: str | None = None) -> SweepHandle:
        """Post a sweep; safe to repeat with the same key. A higher priority goes first."""
        return SweepHandle.bind(self._client.send(self._calls.create(spec, idempotency_key, priority)), self)

    def get(self, run_id: str) -> SweepHandle:
        """How a sweep stands."""
        return SweepHandle.bind(super().get(run_id), self)

    def wait(
        self,
        run_id: str,
        *,
        poll_s: float = 0.5,
        timeout_s: float | None = None,
        on_update: Callable[[Sweep], None] | None = None,
        progress: bool = False,
    ) -> Sweep:
        """Wait until a sweep has succeeded.

        Args:
            run_id: of the sweep.
            poll_s: seconds between two looks.
            timeout_s: patience; None waits for ever.
            on_update: told of every look.
            progress: show rounds, beams and the time left on the terminal.

        Raises:
            JobFailedError: it failed or was cancelled.
            TimeoutError: patience ran out; the sweep goes on.
        """
        with ExitStack() as stack:
            if progress:
                from rich.console import Console

                from service.client.sweep_view import SweepView

                view = stack.enter_context(SweepView(Console(), self.find_results))
                on_update = view.update if on_update is None else _both(view.update, on_update)
            return super().wait(run_id, poll_s=poll_s, timeout_s=timeout_s, on_update=on_update)

    def results(self, sweep_id: str) -> SweepResults:
        """All that a sweep has found so far.

        Raises:
            NotFoundError: it has not begun its trials.
        """
        return self._client.send(calls.get_results(sweep_id))

    def find_results(self, sweep_id: str) -> SweepResults | None:
        """As `results`; None while it has not begun its trials."""
        try:
            return self.results(sweep_id)
        except NotFoundError:
            return None

    def trials(
        self,
        sweep_id: str,
        *,
        stage: str | None = None,
        candidate: str | None = None,
        statuses: builtins.list[TrialStatus] | None = None,
    ) -> builtins.list[Trial]:
        """Its trials: all, or those of a stage, a candidate or a status."""
        return self._all(
            lambda after: calls.list_trials(sweep_id, after, PAGE, stage=stage, candidate=candidate, statuses=statuses)
        )

    def beams(
        self, sweep_id: str, *, stage: str | None = None, all_candidates: bool = False
    ) -> builtins.list[Candidate]:
        """The leaderboard, of each stage the best first: beams and what went on, or all candidates."""
        return self._all(
            lambda after: calls.list_beams(sweep_id, after, PAGE, stage=stage, all_candidates=all_candidates)
        )

    def promote(self, sweep_id: str, candidate_id: str) -> JobSpec:
        """The job that trains a candidate's mix at full length; nothing is started."""
        return self._client.send(calls.promote(sweep_id, candidate_id))

    def best(self, sweep_id: str) -> Promotion:
        """The best candidate so far, and its job.

        Raises:
            NotFoundError: there is none yet.
        """
        return best_of(SweepSpec.model_validate(self.get(sweep_id).spec), self.results(sweep_id))

    def report(self, sweep_id: str) -> str:
        """The page on a sweep that has ended, as HTML."""
        return self._client.send(calls.get_sweep_report(sweep_id))

    def _all(self, ask: Callable[[str | None], Call[Page[Item]]]) -> builtins.list[Item]:
        items: builtins.list[Item] = []
        while True:
            page = self._client.send(ask(items[-1].id if items else None))
            items += page.data
            if not page.has_more:
                return items


def _both(first: Callable[[Sweep], None], second: Callable[[Sweep], None]) -> Callable[[Sweep], None]:
    def update(sweep: Sweep) -> None:
        first(sweep)
        second(sweep)

    return update


class SweepHandle(Sweep):
    """A sweep as it stood when it was asked for, and a hold on it."""

    _sweeps: Sweeps = PrivateAttr()

    @classmethod
    def bind(cls, sweep: Sweep, sweeps: Sweeps) -> Self:
        """A handle on a sweep."""
        handle = cls.model_construct(**dict(sweep))
        handle._sweeps = sweeps  # noqa: SLF001  the class's own
        return handle

    def refresh(self) -> SweepHandle:
        """How it stands now."""
        return self._sweeps.get(self.id)

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Sweep:
        """As `Sweeps.wait`."""
        return self._sweeps.wait(self.id, progress=progress, timeout_s=timeout_s)

    def update(self, *, priority: int) -> Sweep:
        """As `Sweeps.update`."""
        return self._sweeps.update(self.id, priority=priority)

    def cancel(self) -> Sweep:
        """Cancel it; finished trials stay."""
        return self._sweeps.cancel(self.id)

    def stream_events(self, *, after: int = 0) -> Iterator[JobEvent]:
        """As `Sweeps.stream_events`."""
        return self._sweeps.stream_events(self.id, after=after)

    def results(self) -> SweepResults:
        """As `Sweeps.results`."""
        return self._sweeps.results(self.id)

    def trials(self, *, stage: str | None = None, candidate: str | None = None) -> list[Trial]:
        """As `Sweeps.trials`."""
        return self._sweeps.trials(self.id, stage=stage, candidate=candidate)

    def beams(self, *, stage: str | None = None, all_candidates: bool = False) -> list[Candidate]:
        """As `Sweeps.beams`."""
        return self._sweeps.beams(self.id, stage=stage, all_candidates=all_candidates)

    def promote(self, candidate_id: str) -> JobSpec:
        """As `Sweeps.promote`."""
        return self._sweeps.promote(self.id, candidate_id)

    def best(self) -> Promotion:
        """As `Sweeps.best`."""
        return self._sweeps.best(self.id)

    def report(self) -> str:
        """As `Sweeps.report`."""
        return self._sweeps.report(self.id)


class AsyncSweeps(AsyncRuns[Sweep]):
    """`async_client.sweeps`: as `Sweeps`, awaited; sweeps are plain answers here, without methods."""

    def __init__(self, client: AsyncSender) -> None:
        super().__init__(client, calls.SWEEPS)

    async def create(self, spec: SweepSpec, *, priority: int = 0, idempotency_key: str | None = None) -> Sweep:
        """As `Sweeps.create`."""
        return await self._client.send(self._calls.create(spec, idempotency_key, priority))

    async def results(self, sweep_id: str) -> SweepResults:
        """As `Sweeps.results`."""
        return await self._client.send(calls.get_results(sweep_id))

    async def find_results(self, sweep_id: str) -> SweepResults | None:
        """As `Sweeps.find_results`."""
        try:
            return await self.results(sweep_id)
        except NotFoundError:
            return None

    async def trials(
        self,
        sweep_id: str,
        *,
        stage: str | None = None,
        candidate: str | None = None,
        statuses: builtins.list[TrialStatus] | None = None,
    ) -> builtins.list[Trial]:
        """As `Sweeps.trials`."""
        return await self._all(
            lambda after: calls.list_trials(sweep_id, after, PAGE, stage=stage, candidate=candidate, statuses=statuses)
        )

    async def beams(
        self, sweep_id: str, *, stage: str | None = None, all_candidates: bool = False
    ) -> builtins.list[Candidate]:
        """As `Sweeps.beams`."""
        return await self._all(
            lambda after: calls.list_beams(sweep_id, after, PAGE, stage=stage, all_candidates=all_candidates)
        )

    async def promote(self, sweep_id: str, candidate_id: str) -> JobSpec:
        """As `Sweeps.promote`."""
        return await self._client.send(calls.promote(sweep_id, candidate_id))

    async def best(self, sweep_id: str) -> Promotion:
        """As `Sweeps.best`."""
        sweep = await self.get(sweep_id)
        return best_of(SweepSpec.model_validate(sweep.spec), await self.results(sweep_id))

    async def report(self, sweep_id: str) -> str:
        """As `Sweeps.report`."""
        return await self._client.send(calls.get_sweep_report(sweep_id))

    async def _all(self, ask: Callable[[str | None], Call[Page[Item]]]) -> builtins.list[Item]:
        items: builtins.list[Item] = []
        while True:
            page = await self._client.send(ask(items[-1].id if items else None))
            items += page.data
            if not page.has_more:
                return items
