from __future__ import annotations

import math

import pytest

from ray_jobs.train.checkpoint import TrainingState
from ray_jobs.train.guards import Guards, require_progress
from service.errors import NonFiniteLossError
from service.spec.train import TrainSpec

EVEN = [[3.0, 3.0], [3.0, 3.0]]


def spikes(losses: list[float]) -> list[int]:
    """Indices of the losses that are warned of."""
    guards = Guards()
    return [index for index, loss in enumerate(losses) if guards.check(index + 1, loss, EVEN)]


def test_a_loss_that_stands_out_is_told_once_and_changes_the_judgement_of_others_little() -> None:
    falling = [3 * 0.97**step + 0.005 * (-1) ** step for step in range(60)]
    assert spikes(falling) == []
    for index in (12, 40):
        assert spikes([*falling[:index], 2 * falling[index], *falling[index + 1 :]]) == [index]


def test_no_loss_is_unusual_at_the_start_nor_by_little() -> None:
    assert spikes([1.0] * 5 + [9.0]) == []
    assert spikes([1.0] * 30 + [1.19]) == [], "losses that do not vary at all"
    assert spikes([1.0] * 30 + [1.21]) == [30]
    assert spikes([math.nan] * 30 + [9.0]) == [], "skipped steps say nothing of what is usual"


def test_a_dead_expert_is_told_when_it_is_known_and_again_after_it_lived() -> None:
    guards, told = Guards(), []
    for step in range(1, 71):
        alive = 1.0 if step == 30 else 0.0
        told += [(step, warning.message) for warning in guards.check(step, 1.0, [[2.0, 2.0], [4.0, alive]])]
    assert [step for step, _ in told] == [20, 50]
    assert all("layer 1" in message and "expert 1 " in message for _, message in told)


def test_skips_in_a_row_end_the_run_and_an_update_forgives_them() -> None:
    spec, state = TrainSpec(max_skipped_steps=2), TrainingState(step=5, updates=5)
    for skipped in (True, True, False, True, True):
        state = state.after(skipped=skipped)
        require_progress(state, spec)
    assert state == TrainingState(step=10, updates=6, skipped_in_a_row=2)
    with pytest.raises(NonFiniteLossError, match=r"step 11: .* 3 steps in a row"):
        require_progress(state.after(skipped=True), spec)
