"""What trials say of their candidates: gains over the base mix, a score, and how far both are to be trusted.

All within one stage. The noise is the standard deviation between seeds, pooled over all candidates that ran with two or
more; a mean of n trials has that, over the root of n, as its standard error. Two candidates differ beyond the noise
when they differ by more than `LEVEL` of Student's t allows, with as many degrees of freedom as the pool has: with three
seeds of the base mix alone there are two, and 1.3 standard errors; with twenty, 1.02.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from service.spec.sweep import MetricSpec, ObjectiveSpec, is_loss
from service.spec.sweep_results import Candidate, Estimate, Trial

LEVEL = 0.8413
"""Probability that noise alone stays below the limit: one standard error, if the noise were known. Breiman's rule of
one standard error (Breiman et al. 1984, chapter 3): a search that demanded 95 % would call everything equal after two
or three seeds, of which the limit is 2.9 standard errors, and neither narrow down nor ever see a gain."""
CLEAR_LEVEL = 0.97725
"""Probability that noise alone stays below what a report calls clear: two standard errors, if the noise were known."""


class Noise(NamedTuple):
    """Between seeds, of one trial.

    Attributes:
        deviation: standard deviation; 0 while no two seeds were compared.
        degrees: of freedom; 0 means that nothing is known.
    """

    deviation: float = 0.0
    degrees: int = 0

    def of_mean(self, num_trials: int) -> float | None:
        """Standard error of a mean of so many; None while nothing is known."""
        return self.deviation / math.sqrt(num_trials) if self.degrees else None

    def of_difference(self, num_trials: int, num_others: int) -> float | None:
        """Standard error of the difference of two means."""
        return self.deviation * math.sqrt(1 / num_trials + 1 / num_others) if self.degrees else None

    def clear_errors(self, num_compared: int = 1) -> float | None:
        """Standard errors that noise alone seldom exceeds; None while nothing is known.

        Args:
            num_compared: of so many estimates the best, which luck flatters (Sidak 1967).
        """
        return float(stdtrit(self.degrees, CLEAR_LEVEL ** (1 / num_compared))) if self.degrees else None

    def limit(self, num_trials: int, num_others: int) -> float:
        """How far two means may differ by noise alone; 0 while nothing is known."""
        error = self.of_difference(num_trials, num_others)
        return 0.0 if error is None else error * float(stdtrit(self.degrees, LEVEL))

    @classmethod
    def pooled(cls, groups: Iterable[Sequence[float]]) -> Noise:
        """From the spread within each group around its own mean."""
        several = [np.asarray(group) for group in groups if len(group) > 1]
        degrees = sum(len(group) - 1 for group in several)
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
        return cls(math.sqrt(squares / degrees), degrees) if degrees else cls()


class Judgement(NamedTuple):
    """A stage's candidates, judged.

    Attributes:
        candidates: in the order given, with their estimates and ranks.
        ranked: those of them that may be chosen, best first: they finished, and break nothing.
        noise: of one trial's score.
        num_finished: trials of each candidate that count, by its id.
        sound: ids of the candidates whose trials all finished, whether they break a constraint or not.
    """

    candidates: tuple[Candidate, ...]
    ranked: tuple[Candidate, ...]
    noise: Noise
    num_finished: dict[str, int]
    sound: frozenset[str]

    def is_better(self, candidate: Candidate, other: Candidate) -> bool:
        """Whether a candidate's score is above another's by more than the noise; both of `ranked`."""
        assert candidate.score is not None
        assert other.score is not None
        limit = self.noise.limit(self.num_finished[candidate.id], self.num_finished[other.id])
        return candidate.score.value > other.score.value + limit


def judge(objective: ObjectiveSpec, candidates: Sequence[Candidate], ended: Mapping[str, Trial]) -> Judgement:
    """What a stage's trials say of its candidates.

    Only trials that finished count in a candidate's estimates. Ranks go by classes: what finished with all seeds; what
    was stopped, the later the better; what breaks a constraint; what failed with any seed. Within a class they go by
    score, among the stopped by the score at the rung.

    Args:
        objective: of the sweep.
        candidates: of one stage, the base mix among them.
        ended: trials by id; those that are named by no candidate do not matter.

    Returns:
        The candidates with metrics, gains, score, broken constraints, rank and cost. Without a finished trial of the
        base mix there are no gains, and no score.

    Raises:
        ValueError: a finished trial lacks a metric that the objective names.
    """
    trials = {one.id: [ended[name] for name in one.trials if name in ended] for one in candidates}
    finished = {name: [trial for trial in group if is_sound(trial)] for name, group in trials.items()}
    base = next(candidate.id for candidate in candidates if candidate.role == "base")
    metrics = {name: _by_candidate(finished, name) for name in _common_metrics(objective, finished)}
    gains = {name: _gains(objective, name, by_id, base) for name, by_id in metrics.items() if by_id.get(base)}
    scores = _scores(objective.metrics, gains) if gains else {}
    noises = {name: Noise.pooled(by_id.values()) for name, by_id in gains.items()}
    noise = Noise.pooled(scores.values())
    spreads = {name: Noise.pooled(by_id.values()) for name, by_id in metrics.items()}
    judged = [
        candidate.model_copy(
            update={
                "metrics": _estimates(metrics, spreads, candidate.id),
                "gains": {name: _over(by_id, candidate.id, base, noises[name]) for name, by_id in gains.items()}
                if candidate.id in scores
                else {},
                "score": _over(scores, candidate.id, base, noise) if candidate.id in scores else None,
                "broken": _broken(objective, gains, noises, candidate.id, base) if candidate.id in scores else [],
                "worker_seconds": math.fsum(trial.worker_seconds for trial in trials[candidate.id]),
            }
        )
        for candidate in candidates
    ]
    standings = {one.id: _standing(one, trials[one.id]) for one in judged if trials[one.id]}
    order = sorted(standings, key=lambda name: (standings[name], name))
    ranks = {name: rank for rank, name in enumerate(order, start=1)}
    judged = [one.model_copy(update={"rank": ranks.get(one.id)}) for one in judged]
    by_id = {one.id: one for one in judged}
    ranked = tuple(by_id[name] for name in order if standings[name][0] == _CHOOSABLE)
    sound = frozenset(name for name in order if standings[name][0] in (_CHOOSABLE, _BROKEN))
    return Judgement(tuple(judged), ranked, noise, {name: len(group) for name, group in finished.items()}, sound)


def rung_score(objective: ObjectiveSpec, metrics: Mapping[str, float]) -> float:
    """The objective of a trial that is still running, to compare it with others at the same rung; above is better.

    Differences of it are the differences of the score, to first order: of a loss the logarithm counts, whose fall is
    the share by which the loss fell.
    """
    total = math.fsum(metric.weight for metric in objective.metrics)
    return math.fsum(metric.weight * _rung_gain(metric, metrics[metric.name]) for metric in objective.metrics) / total


def _rung_gain(metric: MetricSpec, value: float) -> float:
    amount = math.log(value) if is_loss(metric.name) else value
    return -amount if metric.is_minimised else amount


def is_sound(trial: Trial) -> bool:
    """Whether a trial finished, and with finite numbers; a diverged one counts as failed."""
    return trial.status == "succeeded" and all(math.isfinite(value) for value in trial.metrics.values())


_Samples = dict[str, list[float]]
"""One value for each trial that finished, by candidate; those without one are not in it."""


def _by_candidate(finished: Mapping[str, Sequence[Trial]], metric: str) -> _Samples:
    return {name: [trial.metrics[metric] for trial in group] for name, group in finished.items() if group}


def _common_metrics(objective: ObjectiveSpec, finished: Mapping[str, Sequence[Trial]]) -> list[str]:
    """Those that every finished trial has."""
    measured = [set(trial.metrics) for group in finished.values() for trial in group]
    if not measured:
        return []
    common = set.intersection(*measured)
    for name in objective.metric_names:
        if name not in common:
            raise ValueError(f"a finished trial has no metric {name!r}")
    return sorted(common)


def _gains(objective: ObjectiveSpec, name: str, samples: _Samples, base: str) -> _Samples:
    """Over the mean of the base mix's trials; above 0 is better."""
    reference = float(np.mean(samples[base]))
    spec = next((metric for metric in objective.metrics if metric.name == name), MetricSpec(name=name))
    sign = -1 if spec.is_minimised else 1
    scale = sign / reference if is_loss(name) else sign
    return {one: [scale * (value - reference) for value in values] for one, values in samples.items()}


def _scores(metrics: Sequence[MetricSpec], gains: Mapping[str, _Samples]) -> _Samples:
    """Weighted means of the gains."""
    weights = [metric.weight for metric in metrics]
    columns = [gains[metric.name] for metric in metrics]
    return {
        name: np.average([column[name] for column in columns], axis=0, weights=weights).tolist() for name in columns[0]
    }


def _estimates(metrics: Mapping[str, _Samples], spreads: Mapping[str, Noise], name: str) -> dict[str, Estimate]:
    return {
        metric: Estimate(value=float(np.mean(samples[name])), noise=spreads[metric].of_mean(len(samples[name])))
        for metric, samples in metrics.items()
        if name in samples
    }


def _over(samples: _Samples, name: str, base: str, noise: Noise) -> Estimate:
    """Mean gain over the base mix, which is subject to the noise of both; of the base mix itself 0 by definition."""
    if name == base:
        return Estimate(value=0.0, noise=0.0 if noise.degrees else None)
    error = noise.of_difference(len(samples[name]), len(samples[base]))
    return Estimate(value=float(np.mean(samples[name])), noise=error)


def _broken(
    objective: ObjectiveSpec, gains: Mapping[str, _Samples], noises: Mapping[str, Noise], name: str, base: str
) -> list[str]:
    """Metrics that are worse than their constraints allow, by more than the noise."""
    if name == base:
        return []
    found = []
    for limit in objective.constraints:
        samples = gains[limit.metric]
        slack = noises[limit.metric].limit(len(samples[name]), len(samples[base]))
        if np.mean(samples[name]) < -limit.max_worsening - slack:
            found.append(limit.metric)
    return found


def _standing(candidate: Candidate, trials: Sequence[Trial]) -> tuple[int, int, float]:
    """Less is better: the class, how early a stopped one ended, the score turned round."""
    if candidate.role == "base" and candidate.score is not None:
        return (_CHOOSABLE, 0, 0.0)  # it is compared by those of its seeds that finished
    stopped = [trial for trial in trials if trial.status == "stopped"]
    if any(trial.status != "stopped" and not is_sound(trial) for trial in trials):
        return (_FAILED, 0, 0.0)
    if stopped:
        last = min(len(trial.rungs) for trial in stopped)  # by number: a rung is not the same step for all
        scores = [trial.rungs[sorted(trial.rungs)[last - 1]] for trial in stopped] if last else []
        return (_STOPPED, -last, -float(np.mean(scores)) if scores else math.inf)
    if candidate.score is None:
        return (_FAILED, 0, 0.0)
    return (_BROKEN if candidate.broken else _CHOOSABLE, 0, -candidate.score.value)


_CHOOSABLE, _STOPPED, _BROKEN, _FAILED = range(4)
