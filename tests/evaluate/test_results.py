from __future__ import annotations

import itertools
import math

import pytest

from ray_jobs.evaluate.results import Metric, TaskResult, pass_at_k


@pytest.mark.parametrize(
    ("num_samples", "num_passed", "k"), [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (6, 1, 6), (4, 0, 2)]
)
def test_pass_at_k_is_the_share_of_all_draws_with_a_pass(num_samples: int, num_passed: int, k: int) -> None:
    draws = list(itertools.combinations([True] * num_passed + [False] * (num_samples - num_passed), k))
    assert pass_at_k(num_samples, num_passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)
    with pytest.raises(ValueError, match="k must lie in"):
        pass_at_k(num_samples, num_passed, num_samples + 1)


def test_a_mean_has_its_standard_error() -> None:
    assert Metric.of([1, 0, 0, 1]) == Metric(0.5, math.sqrt(4 * 0.25 / 3 / 4), 4)
    assert Metric.of([0.25]) == Metric(0.25, None, 1)


def test_a_summary_counts_every_verdict() -> None:
    samples = [{"verdict": verdict} for verdict in ("wrong", "correct", "wrong")]
    assert TaskResult(samples, {"accuracy": Metric(1 / 3, 0.5, 3)}).summary() == {
        "status": "succeeded",
        "reason": None,
        "samples": 3,
        "verdicts": {"wrong": 2, "correct": 1},
        "metrics": {"accuracy": {"score": 1 / 3, "standard_error": 0.5, "n": 3}},
    }
    failed = TaskResult([], {}, failure="away").summary()
    assert (failed["status"], failed["reason"]) == ("failed", "away")
