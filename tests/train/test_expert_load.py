"""Measures of expert load at their two ends and in between."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ray_jobs.train.expert_load import collapse, effective_experts, max_over_mean


def one_for_all(num_experts: int, top_k: int, tokens: int = 10_000) -> Tensor:
    """Every token chooses expert 0; its other choices are even."""
    others = tokens * (top_k - 1) / (num_experts - 1)
    return torch.tensor([float(tokens), *[others] * (num_experts - 1)])


@pytest.mark.parametrize(("num_experts", "top_k"), [(128, 2), (8, 2), (4, 2), (64, 6), (8, 1)])
def test_measures_reach_from_even_to_collapsed(num_experts: int, top_k: int) -> None:
    even = torch.full((num_experts,), 7)
    collapsed = torch.tensor([7] * top_k + [0] * (num_experts - top_k))
    both = torch.stack([even, collapsed])
    assert effective_experts(both).tolist() == pytest.approx([num_experts, top_k])
    assert max_over_mean(both).tolist() == pytest.approx([1, num_experts / top_k])
    assert collapse(both, top_k).tolist() == pytest.approx([0, 1], abs=1e-12)


def test_effective_experts_are_those_in_even_use() -> None:
    assert effective_experts(torch.tensor([3, 0, 3, 3, 0, 0])).item() == pytest.approx(3)
    uneven = torch.tensor([1.0, 3.0])
    assert effective_experts(uneven).item() == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))


@pytest.mark.parametrize(("num_experts", "top_k"), [(128, 2), (8, 2), (4, 2), (64, 6)])
def test_one_expert_for_all_tokens_is_a_collapse_however_even_the_others_are(num_experts: int, top_k: int) -> None:
    assert collapse(one_for_all(num_experts, top_k), top_k).item() == pytest.approx(1)


def test_few_experts_for_all_tokens_are_a_collapse_however_even_they_are() -> None:
    few = torch.tensor([1.0] * 16 + [0.0] * 112)
    assert collapse(few, 2).item() == pytest.approx(0.5), "16 is the geometric mean of 2 and 128"


def test_where_nothing_is_chosen_nothing_collapses() -> None:
    assert collapse(torch.tensor([[5, 5], [5, 5]]), 2).tolist() == [0, 0]
