"""What is allocated: nothing of the size of tokens x experts x capacity, and at the worst what the docs say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import moe.balance
import moe.model
from moe.attention import Documents
from moe.balance import Balancing
from moe.config import MoEConfig
from moe.dispatch import Dispatched, ExpertParallel
from moe.experts import Experts, grouped_swiglu
from moe.model import HybridModel, MoE, PackedBatch
from moe.router import Routing
from tests.moe.kept import MostBytes, bytes_kept

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


# Arctic's ratios, and few experts: those that are not chosen cost no activations.
RATIOS = MoEConfig(
    vocab_size=8, hidden_size=112, num_heads=7, num_kv_heads=1, expert_intermediate_size=76, num_experts=2
)
ROW = 1024


def worst_and_kept(num_layers: int, *, recompute: bool) -> tuple[float, float]:
    """Bytes for each token and unit of hidden size: at the worst of both passes, and kept between them; in bf16."""
    torch.manual_seed(0)
    model = HybridModel(replace(RATIOS, num_layers=num_layers), activation_checkpointing=recompute).bfloat16()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    batch = PackedBatch(torch.zeros(ROW, dtype=torch.int64), Documents.from_lengths([128] * 8), (ROW,))
    kept = bytes_kept(model, lambda: model(batch))
    with MostBytes(model) as most:
        model(batch)[0].sum().backward()
    units = ROW * RATIOS.hidden_size
    return most.bytes / units, kept / units


def test_the_worst_is_little_more_than_what_is_kept() -> None:
    """As docs/benchmarks/training-step.md says, give or take a weight's gradient and what has no unit's size."""
    one, two = (worst_and_kept(num_layers, recompute=False) for num_layers in (1, 2))
    assert 36 < two[1] - one[1] < 38
    for worst, kept in (one, two):
        assert worst - kept < 17
    for num_layers in (1, 2):
        worst, kept = worst_and_kept(num_layers, recompute=True)
        assert worst - kept < 46


def test_that_notices_a_norm_that_autograd_takes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_parts(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x32_TD = x_TD.float()
        return weight_D * (x32_TD * torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + eps)).to(x_TD.dtype)

    monkeypatch.setattr(moe.model, "rms_norm", by_parts)
    worst, kept = worst_and_kept(1, recompute=True)
    assert worst - kept > 55
