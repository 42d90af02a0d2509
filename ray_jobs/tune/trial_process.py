"""What runs in a process of Tune's own for each trial: it has the trial run elsewhere, waits, and tells of its rungs.

Every trial has a new such process, so it imports nothing but Ray: 2 processor seconds instead of the 7.5 that PyTorch,
DeepSpeed and the data's libraries take. The work is done in plain tasks, whose processes Ray uses again for the next
trial.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_POLL_S = 1.0


def run_trial(config: dict[str, Any]) -> None:
    """A trial.

    All that a Tune trial starts must fit into what it reserves, unless it is placed apart from it, as these tasks are.

    Args:
        config: `run_url` of the sweep, `planned` (a `PlannedTrial` as a dictionary), `has_rungs`.
    """
    apart = PlacementGroupSchedulingStrategy(placement_group=None)
    training, told = _train.options(scheduling_strategy=apart).remote(config), set[int]()
    while not ray.wait([training], timeout=_POLL_S)[0]:
        if not config["has_rungs"]:
            continue
        scores: dict[int, float] = ray.get(_rung_scores.options(scheduling_strategy=apart).remote(config))
        for step in sorted(scores.keys() - told):
            told.add(step)
            tune.report({"rung": step, "score": scores[step]})
    ray.get(training)
    tune.report({"ended": True})


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _train(config: dict[str, Any]) -> None:
    from ray_jobs.tune.trial import planned_trial

    planned_trial(config).run_to_its_end()


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _rung_scores(config: dict[str, Any]) -> dict[int, float]:
    from ray_jobs.tune.trial import planned_trial

    return planned_trial(config).rung_scores()
