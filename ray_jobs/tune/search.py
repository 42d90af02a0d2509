"""Ray Tune around a sweep: it places the trials, sees them end, and stops those that lag behind.

The searcher only hands out what `ray_jobs.tune.sweep` says is next, and the scheduler only asks a rule; neither keeps
anything that a restart would need, so Tune's own snapshots are not used: they are written now and then, and a trial
that ended after the last one would run twice. Trials are not paused, which inner trainers do not survive.

A trial's own process (`ray_jobs.tune.trial_process`) trains nothing. It reserves next to nothing, and has Ray Train
started, whose workers have what the spec asks for; a sweep starts no more trials than the cluster has room for, since
two that each hold a part of what both need would wait for each other for ever.
"""

from __future__ import annotations

import os
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.placement import release_room
from ray_jobs.tune.beam import PlannedTrial
from ray_jobs.tune.sweep import Sweep
from ray_jobs.tune.trial import planned_trial
from ray_jobs.tune.trial_process import run_trial

_MAX_TRIAL_RESTARTS = 3
"""Of a trial whose process or node was lost, or whose workers were more often than the job's spec allows."""
_TRIALS_AT_ONCE = 10_000
"""Above what any sweep has: `Sweep.next_trial` decides."""


def run_trials(sweep: Sweep, run: RunDirectory, attempt: int) -> None:
    """Run all trials that are left; Ray is connected.

    Args:
        sweep: how it stands.
        run: its run directory.
        attempt: of the sweep.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    trainable = tune.with_resources(run_trial, {"memory": 1})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_SweepSearcher(sweep, run.url),
            scheduler=_RungScheduler(sweep),
            num_samples=-1,
            max_concurrent_trials=_TRIALS_AT_ONCE,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{attempt}",
            storage_path=run.join("ray_tune"),
            stop=_StopWhenOver(sweep),
            failure_config=tune.FailureConfig(max_failures=_MAX_TRIAL_RESTARTS),
            callbacks=[_RoomOfLostTrials()],
            verbose=0,
        ),
    )
    tuner.fit()


class _SweepSearcher(Searcher):  # type: ignore[misc]
    """Hands out the sweep's trials, and tells it of their end."""

    def __init__(self, sweep: Sweep, run_url: str) -> None:
        super().__init__()
        self._sweep, self._run_url = sweep, run_url
        self._trials: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's parameters; None while there is none to start."""
        if self._sweep.is_over:
            finished: str = Searcher.FINISHED
            return finished
        trial = self._sweep.next_trial()
        if trial is None:
            return None
        self._trials[trial_id] = trial.planned.id
        return {"run_url": self._run_url, "planned": trial.planned._asdict(), "has_rungs": bool(trial.rungs)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """It has ended, was stopped, or was lost more often than it may be."""
        reason = "its process was lost, or raised what nobody foresaw: see the job's log" if error else None
        self._sweep.end(self._trials.pop(trial_id), reason)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see the module's docstring."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see the module's docstring."""


class _RungScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops trials that lag behind."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:  # noqa: ARG002
        """A trial tells what it has reached."""
        is_behind = "rung" in result and self._sweep.is_behind(
            PlannedTrial(**trial.config["planned"]), result["rung"], result["score"]
        )
        decision: str = TrialScheduler.STOP if is_behind else TrialScheduler.CONTINUE
        return decision


class _RoomOfLostTrials(Callback):  # type: ignore[misc]
    """Frees what the processes of a trial had reserved for its workers when they were lost.

    The trial's next start would do so too, but may never come: what lay on a dead node Ray places elsewhere before all
    else, Tune's own reservation for that start included, and while it finds no place all else waits.
    """

    def on_trial_recover(self, *, trial: TuneTrial, **_: Any) -> None:
        """It is to start again."""
        release_room(planned_trial(trial.config).directory)

    def on_trial_error(self, *, trial: TuneTrial, **_: Any) -> None:
        """It is not."""
        release_room(planned_trial(trial.config).directory)


class _StopWhenOver(Stopper):  # type: ignore[misc]
    """Ends the trials that still run when too many have failed."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """Of one trial: never."""
        return False

    def stop_all(self) -> bool:
        """Of all."""
        return self._sweep.is_over
