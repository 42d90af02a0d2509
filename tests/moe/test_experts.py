"""Both ways to apply the experts, and the moves around them, against the obvious formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe import experts
from moe.config import MoEConfig
from moe.dispatch import ExpertParallel, Permutation, combine, dispatch
from moe.experts import Experts, block_swiglu, grouped_swiglu
from moe.router import Routing

CONFIG = MoEConfig(hidden_size=16, num_heads=2, num_kv_heads=2, expert_intermediate_size=24, num_experts=5)
COUNTS_E = torch.tensor([3, 0, 7, 1, 0])
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# A product of 16 or 24 terms rounds by at most 24 x 2^-24 of the sum of its terms' sizes; three of them in a row, the
# activation and a gradient's sum over 7 rows: at most 3 x 24 + 8 + 7 such roundings.
TOLERANCE = 87 * 2**-24


def obvious(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """One row at a time."""
    owners = torch.arange(len(counts_E)).repeat_interleave(counts_E).tolist()
    rows = []
    for x_D, expert in zip(x_MD, owners, strict=True):
        w1_FD, w3_FD = w13_EGD[expert].chunk(2)
        rows.append(w2_EDF[expert] @ (F.silu(w1_FD @ x_D) * (w3_FD @ x_D)))
    return torch.stack(rows)


def run(way: Way, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of x, w13, w2, all of the same random input."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((11, 16), (5, 48, 16), (5, 16, 24), (11, 16))
    x_MD, w13_EGD, w2_EDF, grad_MD = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    inputs = [tensor.requires_grad_() for tensor in (x_MD, w13_EGD, w2_EDF)]
    y_MD = way(*inputs, COUNTS_E)
    y_MD.backward(grad_MD)
    return [y_MD.detach(), *(tensor.grad for tensor in inputs)]  # type: ignore[misc]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, mine, true in zip(("y", "x", "w13", "w2"), actual, expected, strict=True):
        error = (mine.double() - true).abs().max() / true.abs().max()
        assert error < TOLERANCE, f"{name}: {error}"


@pytest.mark.parametrize("way", [block_swiglu, grouped_swiglu])
def test_each_way_is_the_obvious_formula(way: Way) -> None:
    assert_same(run(way, torch.float32), run(obvious, torch.float64))


def test_the_comparison_notices_swapped_halves() -> None:
    def swapped(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
        return block_swiglu(x_MD, w13_EGD.roll(24, 1), w2_EDF, counts_E)

    with pytest.raises(AssertionError, match="y: "):
        assert_same(run(swapped, torch.float32), run(obvious, torch.float64))


def test_an_expert_without_tokens_has_zero_gradients() -> None:
    _, _, grad_w13_EGD, grad_w2_EDF = run(block_swiglu, torch.float32)
    for expert in (1, 4):
        assert not grad_w13_EGD[expert].any()
        assert not grad_w2_EDF[expert].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    alone = run(block_swiglu, dtype)
    torch.set_num_threads(3)
    try:
        spread = run(block_swiglu, dtype)
        assert torch.get_num_threads() == 3, "this thread's own number is left alone"
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(mine, other) for mine, other in zip(alone, spread, strict=True))


def test_an_error_in_a_thread_is_raised() -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            block_swiglu(torch.ones(11, 16), torch.ones(5, 48, 9), torch.ones(5, 16, 24), COUNTS_E)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("counts", [[0, 0, 0], [5], [1, 0, 0, 9], [0, 4, 4, 4, 0], [100, 1, 1]])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_every_expert_is_in_one_part(counts: list[int], num_parts: int) -> None:
    parts = experts._parts(counts, num_parts)
    assert [index for part in parts for index in part] == list(range(len(counts)))
    assert len(parts) <= num_parts


def test_frozen_experts_pass_the_same_gradient_on_and_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Experts(CONFIG, 5)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    products: list[tuple[int, ...]] = []
    multiply = torch.mm

    def counting(*arguments: Tensor, **options: Tensor) -> Tensor:
        products.append(tuple(arguments[0].shape))
        return multiply(*arguments, **options)

    def gradient_of_input() -> Tensor:
        x_MD = torch.randn(11, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        layer(x_MD, COUNTS_E).square().sum().backward()
        assert x_MD.grad is not None
        return x_MD.grad

    trained = gradient_of_input()
    layer.zero_grad()
    layer.requires_grad_(requires_grad=False)
    monkeypatch.setattr(torch, "mm", counting)
    assert torch.equal(gradient_of_input(), trained)
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert len(products) == 3 * (2 + 2), (
        "two products forward, two backward, for each expert with tokens; none for weights"
    )


def test_a_permutation_and_its_gradient_are_those_of_indexing() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    keys_N = torch.randint(0, 4, (12,), generator=generator)
    permutation = Permutation.sorting(keys_N)
    assert keys_N[permutation.order_N].tolist() == sorted(keys_N.tolist())
    taken_ND = permutation.take(x_TD, copies=2)
    assert torch.equal(taken_ND, x_TD.repeat_interleave(2, 0)[permutation.order_N])
    assert torch.equal(permutation.restore(taken_ND), x_TD.repeat_interleave(2, 0))
    assert torch.autograd.gradcheck(lambda x: permutation.take(x, copies=2), (x_TD,))


def test_combining_is_the_weighted_sum_and_so_is_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    experts_TK = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(6)])
    weights_TK = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    x_TD = torch.randn(6, 16, generator=generator, dtype=torch.float64)

    def scaled_by_expert(x_TD: Tensor, weights_TK: Tensor) -> Tensor:
        routing, parallel = Routing(torch.empty(6, 5), experts_TK, weights_TK), ExpertParallel()
        dispatched = dispatch(x_TD, routing, 5, parallel)
        owners_N = torch.arange(5).repeat_interleave(dispatched.counts_E)
        return combine(dispatched.x_MD * (owners_N[:, None] + 1), dispatched, routing, parallel)

    expected_TD = x_TD * ((experts_TK + 1) * weights_TK).sum(1, keepdim=True)
    torch.testing.assert_close(scaled_by_expert(x_TD, weights_TK), expected_TD, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(scaled_by_expert, (x_TD.requires_grad_(), weights_TK.requires_grad_()))
