"""Gains over the base mix, their noise, and the order they give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ray_jobs.tune.agreement import agreement
from ray_jobs.tune.objective import CLEAR_LEVEL, LEVEL, Judgement, Noise, judge, rung_score
from service.spec.sweep import ConstraintSpec, MetricSpec, ObjectiveSpec
from service.spec.sweep_results import Candidate, Trial

MIXED = ObjectiveSpec(metrics=(MetricSpec(name="held_out_loss.math", weight=3), MetricSpec(name="gsm8k.exact_match")))


def judged(objective: ObjectiveSpec, *groups: list[dict[str, Any]]) -> Judgement:
    """Of candidates `c0` (the base mix), `c1` and so on; a trial is its metrics, or other fields."""
    candidates, trials = [], {}
    for number, group in enumerate(groups):
        names = [f"c{number}-s{n}" for n in range(len(group))]
        role: Any = "spread" if number else "base"
        candidates.append(Candidate(id=f"c{number}", stage="a", round=0, role=role, trials=names))
        for seed, (name, given) in enumerate(zip(names, group, strict=True)):
            fields = given if "status" in given else {"status": "succeeded", "metrics": given}
            trials[name] = Trial(id=name, candidate=f"c{number}", stage="a", seed=seed, worker_seconds=2.0, **fields)
    return judge(objective, candidates, trials)


def losses(*values: float) -> list[dict[str, Any]]:
    return [{"held_out_loss": value} for value in values]


def test_a_score_is_the_weighted_mean_of_gains() -> None:
    both = [
        {"held_out_loss.math": 2.0, "gsm8k.exact_match": 0.30},
        {"held_out_loss.math": 2.2, "gsm8k.exact_match": 0.34},
    ]
    result = judged(MIXED, both, [{"held_out_loss.math": 1.68, "gsm8k.exact_match": 0.28}])
    base, other = result.candidates
    assert base.score is not None
    assert (base.score.value, base.score.noise) == (0, 0)
    assert other.gains["held_out_loss.math"].value == pytest.approx((2.1 - 1.68) / 2.1)
    assert other.gains["gsm8k.exact_match"].value == pytest.approx(0.28 - 0.32)
    assert other.score is not None
    assert other.score.value == pytest.approx((3 * 0.2 - 0.04) / 4)
    assert other.metrics["held_out_loss.math"].value == 1.68
    assert other.worker_seconds == 2


def test_a_direction_turns_a_metric_round() -> None:
    up = ObjectiveSpec(metrics=(MetricSpec(name="held_out_loss", direction="max"),))
    worse, better = judged(up, losses(2, 2), losses(1), losses(3)).candidates[1:]
    assert worse.score is not None
    assert better.score is not None
    assert (worse.score.value, better.score.value) == (-0.5, 0.5)


def test_noise_is_pooled_over_candidates_and_counts_the_base_mix() -> None:
    result = judged(ObjectiveSpec(), losses(1.9, 2.0, 2.1), losses(1.8, 1.84), losses(1.5))
    # in gains: squares of 0.05, 0, 0.05 around their mean, and of 0.01 twice; 2 + 1 degrees
    deviation = math.sqrt((2 * 0.05**2 + 2 * 0.01**2) / 3)
    assert result.noise.deviation == pytest.approx(deviation)
    assert result.noise.degrees == 3
    _base, two, one = result.candidates
    assert two.score is not None
    assert one.score is not None
    assert two.score.noise == pytest.approx(deviation * math.sqrt(1 / 2 + 1 / 3))
    assert one.score.noise == pytest.approx(deviation * math.sqrt(1 + 1 / 3))
    assert one.metrics["held_out_loss"].noise == pytest.approx(2 * deviation)
    assert two.metrics["held_out_loss"].noise == pytest.approx(2 * deviation / math.sqrt(2))


def test_better_means_beyond_the_noise_of_both() -> None:
    noise = Noise(deviation=0.01, degrees=2)
    # Student's t with 2 degrees is at t / sqrt(2 + t^2) = 2 p - 1
    level = 2 * LEVEL - 1
    t = math.sqrt(2 * level**2 / (1 - level**2))
    assert noise.limit(1, 3) == pytest.approx(t * 0.01 * math.sqrt(4 / 3))
    assert Noise().limit(1, 1) == 0
    assert Noise().of_mean(2) is None
    result = judged(ObjectiveSpec(), losses(1.9, 2.0, 2.1), losses(1.95), losses(1.7))
    base, slightly, clearly = result.candidates
    assert not result.is_better(slightly, base)
    assert result.is_better(clearly, base)
    assert not result.is_better(base, clearly)


def test_without_a_second_seed_nothing_is_known_of_the_noise() -> None:
    result = judged(ObjectiveSpec(), losses(2.0), losses(1.9))
    assert result.candidates[1].score is not None
    assert result.candidates[1].score.noise is None
    assert result.is_better(result.candidates[1], result.candidates[0])


def test_a_constraint_is_broken_only_beyond_the_noise() -> None:
    limit = ConstraintSpec(metric="held_out_loss.code", max_worsening=0.01)
    objective = ObjectiveSpec(metrics=(MetricSpec(name="held_out_loss.math"),), constraints=(limit,))

    def both(math_loss: float, code_loss: float) -> dict[str, Any]:
        return {"held_out_loss.math": math_loss, "held_out_loss.code": code_loss}

    base = [both(2, 1.99), both(2, 2.01)]  # noise of 0.7 %
    result = judged(objective, base, [both(1.5, 2.03)], [both(1.0, 2.10)], [both(1.9, 2.0)])
    assert [candidate.broken for candidate in result.candidates] == [[], [], ["held_out_loss.code"], []]
    assert [candidate.rank for candidate in result.candidates] == [3, 1, 4, 2]
    assert [candidate.id for candidate in result.ranked] == ["c1", "c3", "c0"]


def test_what_was_stopped_comes_behind_what_finished_and_what_failed_comes_last() -> None:
    def stopped(**rungs: float) -> dict[str, Any]:
        by_step = {int(step[1:]): score for step, score in rungs.items()}
        return {"status": "stopped", "metrics": {"held_out_loss": 0.5}, "rungs": by_step}

    failed: dict[str, Any] = {"status": "failed"}
    result = judged(
        ObjectiveSpec(),
        losses(2.0, 2.0),
        [stopped(_10=-0.9)],
        [stopped(_10=-0.8)],
        [stopped(_10=-0.95, _30=-0.94)],
        losses(2.5),
        [losses(1.0)[0], failed],
        losses(math.nan),
        [losses(1.0)[0], stopped(_10=-0.7)],
    )
    ranks = {candidate.id: candidate.rank for candidate in result.candidates}
    assert sorted(ranks, key=lambda name: ranks[name] or 0) == ["c0", "c4", "c3", "c7", "c2", "c1", "c5", "c6"]
    assert [candidate.id for candidate in result.ranked] == ["c0", "c4"]
    assert result.candidates[1].score is None


def test_a_missing_metric_is_named() -> None:
    with pytest.raises(ValueError, match="no metric 'held_out_loss'"):
        judged(ObjectiveSpec(), [{"held_out_loss.math": 2.0}])


def test_differences_at_a_rung_are_those_of_the_score() -> None:
    low, high = ({"held_out_loss.math": loss, "gsm8k.exact_match": score} for loss, score in ((2.0, 0.3), (1.98, 0.31)))
    assert rung_score(MIXED, high) - rung_score(MIXED, low) == pytest.approx((3 * 0.01 + 0.01) / 4, abs=1e-4)


def test_stages_agree_when_they_rank_alike() -> None:
    first = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 9.0}
    alike = agreement("small", "large", first, {"a": -3.0, "b": 0.0, "c": 0.01})
    assert (alike.num_candidates, alike.spearman, alike.same_best) == (3, pytest.approx(1), True)
    turned = agreement("small", "large", first, {"a": 3.0, "b": 2.0, "c": 1.0})
    assert (turned.spearman, turned.same_best) == (pytest.approx(-1), False)
    # ranks 1 2 3 and 1 3 2: 1 - 6 (0 + 1 + 1) / (3 x 8)
    assert agreement("s", "l", first, {"a": 1.0, "b": 3.0, "c": 2.0}).spearman == pytest.approx(0.5)
    assert agreement("s", "l", first, {"a": 1.0, "b": 3.0}).spearman is None
    assert agreement("s", "l", first, {"a": 1.0, "b": 1.0, "c": 1.0}).spearman is None


def test_how_often_chance_would_agree_as_well_is_told() -> None:
    def chance(*second: float) -> float | None:
        names = "abcdefghij"[: len(second)]
        first = dict(zip(names, range(len(second)), strict=True))
        return agreement("s", "l", first, dict(zip(names, second, strict=True))).chance

    assert chance(1, 2, 3) == pytest.approx(1 / 6), "one of six orders"
    assert chance(1, 2, 3, 4) == pytest.approx(1 / 24)
    assert chance(1, 2, 4, 3) == pytest.approx(4 / 24), "the best, and three with two neighbours exchanged"
    assert chance(3, 2, 1) == pytest.approx(1)
    assert chance(1, 1, 2) == pytest.approx(1 / 3), "of the tied ones either may be the first"
    assert chance(1, 2) is None
    # ten candidates with two neighbours exchanged: 10 of 3,628,800 orders
    ten = chance(1, 2, 3, 4, 5, 6, 7, 8, 10, 9)
    assert ten is not None
    assert 0 <= ten < 1e-4
    half = chance(6, 3, 1, 8, 5, 2, 7, 4, 10, 9)
    assert half is not None
    assert 0.01 < half < 0.2


def test_clear_is_what_luck_seldom_reaches() -> None:
    assert Noise().clear_errors() is None
    assert Noise(0.01, 1000).clear_errors() == pytest.approx(2.0, abs=0.01), "as if the noise were known"
    # Student's t with 2 degrees is at t / sqrt(2 + t^2) = 2 p - 1
    level = 2 * CLEAR_LEVEL - 1
    assert Noise(0.01, 2).clear_errors() == pytest.approx(math.sqrt(2 * level**2 / (1 - level**2)))
    best_of_ten = Noise(0.01, 1000).clear_errors(10)
    assert best_of_ten is not None
    drawn = np.random.default_rng(0).normal(size=(100_000, 10)).max(axis=1)
    # 100,000 draws err by 0.0005
    assert (drawn > best_of_ten).mean() == pytest.approx(1 - CLEAR_LEVEL, abs=0.002)
