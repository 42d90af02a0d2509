"""Early stopping."""

from __future__ import annotations

import math

import pytest

from ray_jobs.tune.rungs import is_stopped, rung_steps
from service.spec.sweep import EarlyStopSpec


def test_rungs_rise_by_the_reduction_and_end_before_the_last_step() -> None:
    assert rung_steps(EarlyStopSpec(reduction=3, first_rung=1 / 9), 90) == [10, 30]
    assert rung_steps(EarlyStopSpec(), 90) == [30]
    assert rung_steps(EarlyStopSpec(reduction=1.5, first_rung=0.1), 4) == [1, 2, 3]
    assert rung_steps(EarlyStopSpec(), 1) == []


@pytest.mark.parametrize(
    ("score", "others", "stopped"),
    [
        (1.0, [], False),  # whoever comes first goes on
        (1.0, [2.0], True),  # one of three goes on, and of two one too
        (2.0, [1.0], False),
        (2.0, [3.0, 1.0, 0.0, 0.5, 0.2], False),  # two of six go on
        (2.0, [3.0, 4.0, 0.0, 0.5, 0.2], True),
        (2.0, [3.0, 4.0, 0.0, 0.5], True),  # one of five
        (1.0, [1.0, 1.0], False),  # equals go on
        (math.nan, [], True),
    ],
)
def test_one_in_three_goes_on(score: float, others: list[float], stopped: bool) -> None:
    assert is_stopped(score, others, 3.0) is stopped
