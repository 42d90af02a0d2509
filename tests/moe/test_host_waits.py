"""On a GPU the host runs ahead of the device; a layer that reads a value back, or copies one over, makes it wait.

The meta device has shapes and no values, so whatever would have to read a value fails on it, with no GPU at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import moe.balance
import moe.dispatch
from moe.balance import Balancing
from moe.config import MoEConfig
from moe.dispatch import ExpertParallel
from moe.experts import Experts, grouped_swiglu
from moe.model import MoE

CONFIG = MoEConfig(hidden_size=16, num_heads=2, num_kv_heads=2, expert_intermediate_size=24, num_experts=5)


class _NothingCopiedOver(TorchFunctionMode):
    """Refuses tensors made of the host's values, and calls with tensors that lie on the host."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func not in (torch.tensor, torch.as_tensor), "made of the host's values"
        for leaf in tree_leaves((args, kwargs)):
            assert not isinstance(leaf, Tensor) or leaf.is_meta, f"{func} takes the host's values"
        return func(*args, **(kwargs or {}))


def _run_layer(patch: pytest.MonkeyPatch, capacity_factor: float | None = None) -> None:
    """Forward and backward pass, experts as on a GPU."""
    patch.setattr(
        Experts, "forward", lambda self, x_MD, counts_E: grouped_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)
    )
    with torch.device("meta"):
        layer = MoE(CONFIG, ExpertParallel(), Balancing(capacity_factor)).bfloat16()
        x_TD = torch.empty(20, 16, dtype=torch.bfloat16, requires_grad=True)
        grad_TD = torch.empty(20, 16, dtype=torch.bfloat16)
    with _NothingCopiedOver():
        out_TD, balance = layer(x_TD, (8, 12))
        torch.autograd.backward([out_TD, balance.loss_sum], [grad_TD, None])
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_a_layer_on_one_process_never_waits(capacity_factor: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_layer(monkeypatch, capacity_factor)


def _bincount(experts_N: Tensor, num_experts: int) -> Tensor:
    return experts_N.bincount(minlength=num_experts)


def _counts_read(experts_N: Tensor, num_experts: int) -> Tensor:
    return torch.tensor([experts_N.tolist().count(expert) for expert in range(num_experts)])


def _counts_masked(experts_N: Tensor, num_experts: int) -> Tensor:
    return torch.stack([experts_N[experts_N == expert].sum() for expert in range(num_experts)])


def _counts_made_on_the_host(experts_N: Tensor, num_experts: int) -> Tensor:
    return torch.tensor([len(experts_N)] * num_experts, device=experts_N.device)


def _counts_left_on_the_host(experts_N: Tensor, num_experts: int) -> Tensor:
    return torch.full((num_experts,), len(experts_N), device="cpu")


@pytest.mark.parametrize(
    "count", [_bincount, _counts_read, _counts_masked, _counts_made_on_the_host, _counts_left_on_the_host]
)
@pytest.mark.parametrize("module", [moe.balance, moe.dispatch])
def test_the_check_notices(
    module: Any, count: Callable[[Tensor, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "count_choices", count)
    with pytest.raises((NotImplementedError, AssertionError), match=r"[Mm]eta|the host's values"):
        _run_layer(monkeypatch)
