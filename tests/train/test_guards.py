from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from ray_jobs.train.checkpoint import TrainingState
from ray_jobs.train.guards import Guards, require_measured, require_progress
from service.errors import NonFiniteLossError
from service.spec.train import TrainSpec

EVEN = torch.full((2, 4), 3.0)


def spikes(losses: list[float]) -> list[int]:
    """Indices of the losses that are warned of."""
    guards = Guards(2)
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


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_held_out_loss_that_is_no_number_ends_the_run(loss: float) -> None:
    require_measured({"code": 2.0, "math": 0.0}, "after")
    with pytest.raises(NonFiniteLossError, match=f"after: the held-out loss of math is {loss}"):
        require_measured({"code": 2.0, "math": loss}, "after")
    assert NonFiniteLossError("").fault != "infrastructure", "it would come again"


def test_a_dead_expert_is_told_when_it_is_known_and_again_after_it_lived() -> None:
    guards, told = Guards(1), []
    for step in range(1, 71):
        alive = 1.0 if step == 30 else 0.0
        copies_LE = torch.tensor([[2.0, 2.0, 2.0], [2.0, alive, 2.0]])
        told += [(step, warning.message) for warning in guards.check(step, 1.0, copies_LE)]
    assert [step for step, _ in told] == [20, 50]
    assert all("layer 1" in message and "expert 1 " in message for _, message in told)


def collapses(series: Sequence[list[float]], top_k: int = 2) -> list[tuple[int, str]]:
    """Steps that are warned of, and how, when layer 1 goes through these copies and layer 0 stays even."""
    guards, told = Guards(top_k), []
    for step, copies_E in enumerate(series, 1):
        copies_LE = torch.tensor([[sum(copies_E) / len(copies_E)] * len(copies_E), copies_E])
        told += [(step, w) for w in guards.check(step, 1.0, copies_LE) if w.kind == "router_collapse"]
    return [(step, warning.message) for step, warning in told]


def test_a_collapse_is_told_once_and_again_after_a_recovery() -> None:
    even_E, collapsed_E = [3.0] * 8, [12.0, 12.0, *[0.0] * 6]
    told = collapses([collapsed_E] * 50 + [even_E] + [collapsed_E] * 30)
    assert [step for step, _ in told] == [20, 71]
    assert "layer 1" in told[0][1]
    assert "2.0 evenly used experts of 8" in told[0][1]
    assert "100% of the tokens choose expert 0, where 25%" in told[0][1]


def test_a_load_that_is_only_uneven_or_only_for_a_while_is_no_collapse() -> None:
    even_E, collapsed_E = [3.0] * 8, [12.0, 12.0, *[0.0] * 6]
    assert collapses(([collapsed_E] * 19 + [even_E]) * 4) == []
    assert collapses([[7.0, 4.0, 4.0, 3.0, 2.0, 2.0, 1.0, 1.0]] * 99) == []


@pytest.mark.parametrize(("tokens", "is_told"), [(62.0, False), (63.0, True)])
def test_an_expert_that_most_tokens_choose_is_a_collapse(tokens: float, is_told: bool) -> None:
    """Of 100 tokens; halfway between the even 2 of 8 and all of them lie 62.5, while others may be even."""
    copies_E = [tokens, *[(200 - tokens) / 7] * 7]
    assert bool(collapses([copies_E] * 20)) == is_told


@pytest.mark.parametrize(("used", "is_told"), [(17, False), (15, True)])
def test_few_experts_of_many_are_a_collapse(used: int, is_told: bool) -> None:
    """Between 2 and 128 the entropy is halfway at 16."""
    assert bool(collapses([[8.0] * used + [0.0] * (128 - used)] * 20)) == is_told


def test_skips_in_a_row_end_the_run_and_an_update_forgives_them() -> None:
    spec, state = TrainSpec(max_skipped_steps=2), TrainingState(step=5, updates=5)
    for skipped in (True, True, False, True, True):
        state = state.after(skipped=skipped)
        require_progress(state, spec)
    assert state == TrainingState(step=10, updates=6, skipped_in_a_row=2)
    with pytest.raises(NonFiniteLossError, match=r"step 11: .* 3 steps in a row"):
        require_progress(state.after(skipped=True), spec)
