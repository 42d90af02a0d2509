"""What a MoE layer allocates: nothing of the size of tokens x experts x capacity, as one-hot dispatch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import moe.balance
import moe.model
from moe.balance import Balancing
from moe.config import MoEConfig
from moe.dispatch import Dispatched, ExpertParallel
from moe.experts import Experts, grouped_swiglu
from moe.model import MoE
from moe.router import Routing

CONFIG = MoEConfig(hidden_size=16, num_heads=2, num_kv_heads=2, expert_intermediate_size=8, num_experts=64)
NUM_TOKENS = 256
CAPACITY = CONFIG.top_k * NUM_TOKENS // CONFIG.num_experts

ONE_STACK = 2 * CONFIG.expert_intermediate_size * CONFIG.hidden_size * CONFIG.num_experts
PROBABILITIES = NUM_TOKENS * CONFIG.num_experts
COPIES = CONFIG.top_k * NUM_TOKENS * max(CONFIG.hidden_size, 2 * CONFIG.expert_intermediate_size)
LARGEST = max(ONE_STACK, PROBABILITIES, COPIES)
"""Numbers of the largest tensor that is needed: weights' gradients, probabilities, or a row for each copy."""


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation gives, seen below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.itemsize for leaf in tree_leaves(out) if isinstance(leaf, Tensor)
        ]
        self.numbers = max(self.numbers, *sizes, 0)
        return out


def largest(capacity_factor: float | None) -> int:
    """Of forward and backward pass."""
    torch.manual_seed(0)
    layer = MoE(CONFIG, ExpertParallel(), Balancing(capacity_factor))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x_TD = torch.randn(NUM_TOKENS, CONFIG.hidden_size, requires_grad=True)
    with Largest() as watched:
        out_TD, balance = layer(x_TD, (NUM_TOKENS,))
        (out_TD.sum() + balance.loss_sum).backward()
    assert watched.numbers >= COPIES, "the copies were seen"
    return watched.numbers


def _as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Experts, "forward", lambda self, x_MD, counts_E: grouped_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)
    )


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("is_grouped", [False, True])
def test_no_tensor_is_larger_than_rows_for_the_copies(
    capacity_factor: float | None, is_grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_grouped:
        _as_on_a_gpu(monkeypatch)
    assert largest(capacity_factor) <= LARGEST < NUM_TOKENS * CONFIG.num_experts * CAPACITY / 4


def _counted_by_one_hot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moe.balance, "count_choices", lambda experts_N, num_experts: F.one_hot(experts_N, num_experts).sum(0))


def _dispatched_by_mask(patch: pytest.MonkeyPatch) -> None:
    dispatch = moe.model.dispatch

    def masked(x_TD: Tensor, routing: Routing, num_experts: int, parallel: ExpertParallel) -> Dispatched:
        mask_TE = F.one_hot(routing.experts_TK, num_experts).sum(1)
        mask_TEC = mask_TE[:, :, None] * torch.ones(CAPACITY)
        return dispatch(x_TD + 0 * mask_TEC.sum(), routing, num_experts, parallel)

    patch.setattr(moe.model, "dispatch", masked)


@pytest.mark.parametrize("mutate", [_counted_by_one_hot, _dispatched_by_mask])
def test_the_bound_notices(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert largest(None) > LARGEST
