"""How a running sweep stands, in its driver: which trial is next, which have ended, and what that says.

All that is decided follows from the spec and the trials that have ended, by `ray_jobs.tune.beam.advance`; and each
trial that has ended says so in its own directory. So a driver that starts again knows all that the one before it knew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import ray

from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.trainer import worker_resources
from ray_jobs.tune.beam import Advance, PlannedTrial, advance
from ray_jobs.tune.rungs import is_stopped
from ray_jobs.tune.trial import TrialRun, trial_spec
from ray_jobs.tune.verdict import verdict
from service.errors import InvalidSpecError, TrialsFailedError
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import SWEEP_FILE, SweepResults, Trial

Tell = Callable[..., None]


class Sweep:
    """The state of a sweep.

    Args:
        spec: the sweep's.
        run: its run directory.
        base_mixture: what the base job's mix is; the shares sum to 1.
        prepare_seconds: what the base job's data took.
        tell: is told what happens, as an event's type and data.
    """

    def __init__(
        self, spec: SweepSpec, run: RunDirectory, base_mixture: Mapping[str, float], prepare_seconds: float, tell: Tell
    ) -> None:
        self._spec, self._run, self._base_mixture, self._tell = spec, run, base_mixture, tell
        self._prepare_seconds = prepare_seconds
        self._ended: dict[str, Trial] = {}
        self._planned: dict[str, PlannedTrial] = {}
        self._running: dict[str, PlannedTrial] = {}
        self._behind: set[str] = set()
        self._at_rung: defaultdict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        self._now = self._advance()
        while found := self._ended_before():
            self._ended |= found
            self._now = self._advance()
        for trial in self._ended.values():
            for step, score in trial.rungs.items():
                self._scores_at(self._planned[trial.id], step)[trial.id] = score
        self._write()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles all that it is given, to restore from what is never restored."""
        return {}

    @property
    def is_over(self) -> bool:
        """Whether no further trial will start."""
        return self._now.is_finished or self._has_failed

    def next_trial(self) -> TrialRun | None:
        """A trial to start now, which counts as running from here on; None while there is none, or no room for it."""
        waiting = [planned for planned in self._now.due if planned.id not in self._running]
        if self.is_over or not waiting:
            return None
        planned = waiting[0]
        try:
            job = trial_spec(self._spec, planned)
        except InvalidSpecError as error:
            self._running[planned.id] = planned
            self.end(planned.id, str(error))
            return self.next_trial()
        if len(self._running) >= self._room(job):
            return None
        self._running[planned.id] = planned
        self._tell(
            "trial.started",
            trial=planned.id,
            stage=planned.stage,
            candidate=planned.candidate,
            seed=planned.seed,
            mixture=planned.mixture,
        )
        self._write()
        return self._trial_run(planned)

    def end(self, trial: str, reason: str | None) -> None:
        """A trial runs no more. One that only ends because the sweep does has not ended itself.

        Args:
            trial: its id.
            reason: why it failed, unless it has itself written how it ended; None for one that was stopped.
        """
        run = self._trial_run(self._running.pop(trial))
        ended = run.ended()
        if ended is None and reason is None and trial not in self._behind:
            return
        if ended is None:
            ended = run.end("stopped") if reason is None else run.end("failed", reason)
        self._ended[trial] = ended
        self._now = self._advance()
        score = next((c.score for c in self._now.results.candidates if c.id == ended.candidate), None)
        self._tell(
            "trial.ended",
            trial=trial,
            status=ended.status,
            metrics=ended.metrics,
            score=None if score is None else score.value,
            duration_s=ended.duration_s,
        )
        self._write()

    def is_behind(self, planned: PlannedTrial, step: int, score: float) -> bool:
        """Whether a running trial that has reached a rung is to be stopped there; the base mix never is.

        Args:
            planned: the trial.
            step: of the rung.
            score: `rung_score` there.
        """
        reached = self._scores_at(planned, step)
        reached[planned.id] = score
        others = [other for trial, other in reached.items() if trial != planned.id]
        role = next(c.role for c in self._now.results.candidates if c.id == planned.candidate)
        assert self._spec.early_stop is not None, "without it no trial is compared before its end"
        is_behind = role != "base" and is_stopped(score, others, self._spec.early_stop.reduction)
        if is_behind:
            self._behind.add(planned.id)
        return is_behind

    def results(self) -> SweepResults:
        """All that is known, trials that run included."""
        results = self._now.results
        trials = [
            trial.model_copy(update={"status": "running"}) if trial.id in self._running else trial
            for trial in results.trials
        ]
        results = results.model_copy(update={"trials": trials, "prepare_seconds": self._prepare_seconds})
        return results.model_copy(update={"verdict": verdict(self._spec, results)})

    def remove_leftovers(self) -> None:
        """Remove what the workers of stopped trials still wrote while they were ended; none may run any more."""
        for planned in self._planned.values():
            self._trial_run(planned).remove_leftovers()

    def require_success(self) -> None:
        """Raise if it cannot go on.

        Raises:
            TrialsFailedError: more trials failed than the spec allows.
        """
        if self._has_failed:
            failed = [trial for trial in self._ended.values() if trial.status == "failed"]
            raise TrialsFailedError(
                f"{len(failed)} trials failed, {self._spec.max_trial_failures} may; {failed[0].id}: {failed[0].reason}",
                "max_trial_failures",
            )

    @property
    def _has_failed(self) -> bool:
        return sum(trial.status == "failed" for trial in self._ended.values()) > self._spec.max_trial_failures

    def _advance(self) -> Advance:
        now = advance(self._spec, self._base_mixture, self._ended)
        self._planned |= {planned.id: planned for planned in now.due}
        return now

    def _ended_before(self) -> dict[str, Trial]:
        due = [planned for planned in self._now.due if planned.id not in self._ended]
        found = {planned.id: self._trial_run(planned).ended() for planned in due}
        return {name: trial for name, trial in found.items() if trial is not None}

    def _scores_at(self, planned: PlannedTrial, step: int) -> dict[str, float]:
        """Of the trials of a stage at a rung, by its number: where steps differ in size, so do the rungs' steps."""
        return self._at_rung[planned.stage, self._trial_run(planned).rungs.index(step)]

    def _trial_run(self, planned: PlannedTrial) -> TrialRun:
        return TrialRun(self._run, self._spec, planned)

    def _room(self, job: JobSpec) -> int:
        """Trials like this one at a time: at least one, which then waits as a job does for a cluster that may grow."""
        cluster = ray.cluster_resources()
        fits = min(int(cluster.get(name, 0) / amount) for name, amount in worker_resources(job).items())
        room = max(1, fits // job.parallel.num_workers)
        return room if self._spec.max_concurrent_trials is None else min(room, self._spec.max_concurrent_trials)

    def _write(self) -> None:
        self._run.write_json(SWEEP_FILE, self.results().model_dump(mode="json"))
        self._tell("sweep.progress", **self._progress())

    def _progress(self) -> dict[str, Any]:
        results = self._now.results
        stage = next((s.name for s in results.stages if s.status == "running"), results.stages[-1].name)
        candidates = [candidate for candidate in results.candidates if candidate.stage == stage]
        best = min((c for c in candidates if c.rank is not None), key=lambda c: c.rank or 0, default=None)
        return {
            "stage": stage,
            "round": max((candidate.round for candidate in candidates), default=0),
            "trials_ended": len(self._ended),
            "trials_planned": len(results.trials),
            "best": None if best is None else best.id,
            "best_score": None if best is None or best.score is None else best.score.value,
        }
