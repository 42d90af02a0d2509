from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moe.balance import Balancing
from moe.router import Router, Routing
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import collate
from ray_jobs.train.engine import TrainingStep
from ray_jobs.train.metrics import StepSums
from tests.moe.conftest import TINY, tiny_model

CATEGORIES = ["code", "math"]


def test_metrics_are_the_hand_counted_ones() -> None:
    sums = StepSums(
        nats_C=torch.tensor([6.0, 8.0]),
        trained_C=torch.tensor([3.0, 1.0]),
        balance_L=torch.tensor([10.0, 15.0]),
        entropy_L=torch.tensor([10 * math.log(4), 5.0]),
        dropped_L=torch.tensor([0.0, 5.0]),
        copies_LE=torch.tensor([[5.0, 5.0, 5.0, 5.0], [10.0, 0.0, 8.0, 2.0]]),
    )
    assert sums.describe(CATEGORIES, num_tokens=10, balance_loss_coefficient=0.01) == {
        "loss": 3.5,
        "loss_by_category": {"code": 2.0, "math": 8.0},
        "tokens": 10,
        "trained_tokens": 4,
        "balance_loss": pytest.approx(0.025),
        "balance_loss_floor": 0.02,
        "balance_loss_per_layer": pytest.approx([0.01, 0.015]),
        "load_max_over_mean_per_layer": [1.0, 2.0],
        "dropped_fraction": 0.125,
        "dropped_fraction_per_layer": [0.0, 0.25],
        "router_entropy_per_layer": pytest.approx([math.log(4), 0.5]),
        "dead_experts_per_layer": [0, 1],
    }


def test_sums_of_a_step_are_those_of_its_routings() -> None:
    model, routings = tiny_model(balancing=Balancing(capacity_factor=0.5)), []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _module, _inputs, routing: routings.append(routing))
    tokens = np.array([3, 1, 4, 1, 5, 9], dtype=np.int32)
    row = PackedRow(tokens, tokens > 3, np.array([2, 4], dtype=np.int32), ("math", "code"))
    _, vector = TrainingStep(model, 0.01, 2)(collate([row], CATEGORIES, "cpu"), 3.0, 6.0)
    sums = StepSums.from_vector(vector, 2, TINY)
    assert sums.trained_C.tolist() == [3, 0]
    assert sums.copies_LE.tolist() == [_copies(routing) for routing in routings]
    # an even share of 6 tokens' 12 copies is 3, and half of it, rounded up, 2
    assert sums.dropped_L.tolist() == [sum(max(0, num - 2) for num in _copies(routing)) for routing in routings]
    assert sums.dropped_L.sum() > 0
    assert sums.entropy_L.tolist() == pytest.approx([_entropy(routing) for routing in routings], rel=6 * 4 * 2**-24)
    assert sums.describe(CATEGORIES, 6, 0.01)["dead_experts_per_layer"] == [
        _copies(routing).count(0) for routing in routings
    ]


def _copies(routing: Routing) -> list[int]:
    chosen = [expert for token in routing.experts_TK.tolist() for expert in token]
    return [chosen.count(expert) for expert in range(TINY.num_experts)]


def _entropy(routing: Routing) -> float:
    return -sum(p * math.log(p) for token in routing.probabilities_TE.tolist() for p in token)
