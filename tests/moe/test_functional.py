"""Functions with a backward pass of their own against autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe.functional import gate, rms_norm

EPS = 1e-5


def norm_by_parts(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    x32_TD = x_TD.float()
    scale_T1 = torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + EPS)
    return weight_D * (x32_TD * scale_T1).to(x_TD.dtype)


def gate_by_parts(gate_TD: Tensor, up_TD: Tensor) -> Tensor:
    return F.silu(gate_TD) * up_TD


def norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    return rms_norm(x_TD, weight_D, EPS)


def run(function: Callable[[Tensor, Tensor], Tensor], second: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(size, generator=generator).to(dtype) for size in ((5, 24), second, (5, 24)))
    one, other, gradient = tensors
    out = function(one.requires_grad_(), other.requires_grad_())
    out.backward(gradient)
    assert one.grad is not None
    assert other.grad is not None
    return [out.detach(), one.grad, other.grad]


# The outputs are the same operations, hence the same bits. A gradient has the same terms in another order: a sum over
# 24 numbers and ten operations, each rounding by 2^-24 of a result that is up to 4 times the gradient's size; in bf16
# up to three roundings to 2^-9 stand between.
TOLERANCES = {torch.float32: 4 * 34 * 2**-24, torch.bfloat16: 3 * 2**-9}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("mine", "by_parts", "second"), [(norm, norm_by_parts, (24,)), (gate, gate_by_parts, (5, 24))])
def test_results_and_gradients_are_autograds(
    mine: Callable[[Tensor, Tensor], Tensor],
    by_parts: Callable[[Tensor, Tensor], Tensor],
    second: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    actual, expected = run(mine, second, dtype), run(by_parts, second, dtype)
    assert torch.equal(actual[0], expected[0])
    for gradient, theirs in zip(actual[1:], expected[1:], strict=True):
        assert gradient.dtype == dtype
        assert (gradient - theirs).abs().max() <= TOLERANCES[dtype] * theirs.abs().max()


def test_the_comparison_notices_a_scale_held_constant() -> None:
    def detached(x_TD: Tensor, weight_D: Tensor) -> Tensor:
        scale_T1 = torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + EPS).detach()
        return weight_D * (x_TD * scale_T1)

    actual, expected = run(detached, (24,), torch.float32), run(norm, (24,), torch.float32)
    assert (actual[1] - expected[1]).abs().max() > 1000 * TOLERANCES[torch.float32]


def test_a_frozen_weight_has_no_gradient() -> None:
    x_TD, weight_D = torch.randn(5, 24).requires_grad_(), torch.ones(24)
    norm(x_TD, weight_D).sum().backward()
    assert weight_D.grad is None
