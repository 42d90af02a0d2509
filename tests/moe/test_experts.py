"""All ways to apply the experts, and the moves around them, against the obvious formula."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe.balance import Balancing
from moe.blocks import ProductBlocks
from moe.config import MoEConfig
from moe.dispatch import ExpertParallel, combine, dispatch, receive, send_home
from moe.experts import block_swiglu, grouped_swiglu
from moe.model import MoE
from moe.native import PROCESSORS, KernelBlocks, kernel_blocks
from moe.permutation import Permutation
from moe.router import Routing
from moe.threads import for_parts, parts_of

CONFIG = MoEConfig(hidden_size=16, num_heads=2, num_kv_heads=2, expert_intermediate_size=24, num_experts=5)
COUNTS_E = torch.tensor([3, 0, 7, 1, 0])
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def by_products(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    return block_swiglu(x_MD, w13_EGD, w2_EDF, counts_E, ProductBlocks())


def kernel_of(dtype: torch.dtype) -> KernelBlocks:
    """Skips the test where there can be none; where one does not compile, the test fails."""
    able = sys.platform == "linux" and torch.backends.cpu.get_cpu_capability() in PROCESSORS
    if not able or shutil.which("c++") is None:
        pytest.skip("no processor with AVX2 or AVX-512, or no C++ compiler")
    kernel = kernel_blocks(torch.empty(0, 2, dtype=dtype), 1, 2)
    assert kernel is not None, "the log has what the compiler said"
    return kernel


def by_kernel(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    return block_swiglu(x_MD, w13_EGD, w2_EDF, counts_E, kernel_of(x_MD.dtype))


WAYS = [by_products, by_kernel, grouped_swiglu]
BLOCK_WAYS = [by_products, by_kernel]


def obvious(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """One row at a time."""
    owners = torch.arange(len(counts_E)).repeat_interleave(counts_E).tolist()
    rows = []
    for x_D, expert in zip(x_MD, owners, strict=True):
        w1_FD, w3_FD = w13_EGD[expert].chunk(2)
        rows.append(w2_EDF[expert] @ (F.silu(w1_FD @ x_D) * (w3_FD @ x_D)))
    return torch.stack(rows)


def run(way: Way, dtype: torch.dtype, counts_E: Tensor = COUNTS_E, hidden: int = 16, size: int = 24) -> list[Tensor]:
    """Output and gradients of x, w13, w2, all of the same random input, of bf16's precision."""
    generator = torch.Generator().manual_seed(0)
    rows, experts = int(counts_E.sum()), len(counts_E)
    sizes = ((rows, hidden), (experts, 2 * size, hidden), (experts, hidden, size), (rows, hidden))
    # leaves of their own: a conversion to the same type would give the tensor itself
    x_MD, w13_EGD, w2_EDF, grad_MD = (torch.randn(s, generator=generator).bfloat16().to(dtype).clone() for s in sizes)
    inputs = [tensor.requires_grad_() for tensor in (x_MD, w13_EGD, w2_EDF)]
    y_MD = way(*inputs, counts_E)
    y_MD.backward(grad_MD)
    return [y_MD.detach(), *(tensor.grad for tensor in inputs)]  # type: ignore[misc]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, mine, true in zip(("y", "x", "w13", "w2"), actual, expected, strict=True):
        error = (mine.double() - true).abs().max() / true.abs().max()
        assert error < tolerance, f"{name}: {error}"


def tolerance_of(dtype: torch.dtype, longest_sum: int) -> float:
    """Relative to the largest result.

    Three products in a row and a gradient's sum, each rounding like a random walk: sqrt(n) * 2^-24 of the sum's size
    for n terms in fp32, with 4 times that for the largest of thousands of results; in bf16 the sums are fp32's, and
    five results in a row (h, the activation, its gradient, h's gradient, the end) are rounded by up to 2^-9 each.
    """
    return 4 * 4 * longest_sum**0.5 * 2**-24 + (5 * 2**-9 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_the_obvious_formula(way: Way, dtype: torch.dtype) -> None:
    assert_same(run(way, dtype), run(obvious, torch.float64), tolerance_of(dtype, 24))


# Blocks of every height of tile and every width of strip, with rests: up to 7 vectors of 16 along D and F, or 13 of 8,
# and rows that fill no vector, no pair, and more than a strip of 64.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("hidden", "size"), [(2, 2), (16, 30), (34, 64), (48, 50), (72, 102)])
def test_the_kernel_is_the_obvious_formula_at_any_size(dtype: torch.dtype, hidden: int, size: int) -> None:
    counts_E = torch.tensor([*range(19), 0, 31, 33, 63, 64, 65, 130])
    actual = run(by_kernel, dtype, counts_E, hidden, size)
    assert_same(actual, run(by_products, torch.float64, counts_E, hidden, size), tolerance_of(dtype, 130))


def test_the_kernel_keeps_the_extremes_of_the_activation() -> None:
    """Gates of any size, beside an up projection of 1."""
    gates = [-torch.inf, -1e30, -1e15, -1e4, -100, -20, 0, 20, 100, 1e4, 1e15, 1e30, torch.inf, torch.nan]
    x_MD = torch.tensor([[gate, 1.0] for gate in gates])
    w13_EGD = torch.eye(2).repeat_interleave(2, 0)[None]
    w2_EDF = torch.eye(2)[None]
    counts_E = torch.tensor([len(x_MD)])
    results = []
    for way in BLOCK_WAYS:
        x = x_MD.clone().requires_grad_()
        y_MD = way(x, w13_EGD, w2_EDF, counts_E)
        y_MD.sum().backward()
        assert x.grad is not None
        results.append((y_MD.detach(), x.grad))
    # e^-20 to e^0 within 2 units in the last place of each of exponential, sum, quotient and two products
    for products, kernel in zip(*results, strict=True):
        torch.testing.assert_close(kernel, products, rtol=16 * 2**-24, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("way", WAYS)
def test_the_comparison_notices_swapped_halves(way: Way) -> None:
    def swapped(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
        return way(x_MD, w13_EGD.roll(24, 1), w2_EDF, counts_E)

    with pytest.raises(AssertionError, match="y: "):
        assert_same(run(swapped, torch.float32), run(obvious, torch.float64), tolerance_of(torch.bfloat16, 24))


@pytest.mark.parametrize("way", BLOCK_WAYS)
def test_an_expert_without_tokens_has_zero_gradients(way: Way) -> None:
    _, _, grad_w13_EGD, grad_w2_EDF = run(way, torch.float32)
    for expert in (1, 4):
        assert not grad_w13_EGD[expert].any()
        assert not grad_w2_EDF[expert].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", BLOCK_WAYS)
def test_results_do_not_depend_on_the_number_of_threads(way: Way, dtype: torch.dtype) -> None:
    alone = run(way, dtype)
    torch.set_num_threads(3)
    try:
        spread = run(way, dtype)
        assert torch.get_num_threads() == 3, "this thread's own number is left alone"
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(mine, other) for mine, other in zip(alone, spread, strict=True))


OUT_OF_MEMORY = """
import resource, torch
from moe.blocks import Backward, Forward
from moe.native import kernel_blocks

torch.set_num_threads(2)
rows, hidden, size = 100_000, 64, 64
kernel = kernel_blocks(torch.ones(1, hidden), 1, size)
x, h, y = (torch.zeros(rows, width) for width in (hidden, 2 * size, hidden))
w13, w2 = torch.zeros(1, 2 * size, hidden), torch.zeros(1, hidden, size)
kernel.forward([1], Forward(x, w13, w2, h, y))  # starts the threads
now = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + 2**20, now + 2**20))
for call in (
    lambda: kernel.forward([rows], Forward(x, w13, w2, h, y)),
    lambda: kernel.backward([rows], Backward(x, h, y, w13, w2, torch.empty(0), None, None)),
):
    try:
        call()
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_want_of_memory_is_an_error_and_not_the_end() -> None:
    kernel_of(torch.float32)
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=True)
    assert done.stdout == 2 * "no memory for 100000 copies of one expert of 64 x 64\n"


def test_a_row_does_not_depend_on_the_others_of_its_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    x_MD, w13_EGD, w2_EDF = (torch.randn(s, generator=generator) for s in ((70, 16), (1, 48, 16), (1, 16, 24)))
    together = by_kernel(x_MD, w13_EGD, w2_EDF, torch.tensor([70]))
    alone = [by_kernel(row_D[None], w13_EGD, w2_EDF, torch.tensor([1])) for row_D in x_MD]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("rows", "w13", "w2", "dtype"),
    [
        ((11, 16), (5, 48, 9), (5, 16, 24), torch.float32),
        ((11, 16), (4, 48, 16), (4, 16, 24), torch.float32),
        ((12, 16), (5, 48, 16), (5, 16, 24), torch.float32),
        ((11, 8), (5, 48, 16), (5, 16, 24), torch.float32),
        ((11, 16), (5, 48, 16), (5, 16, 24), torch.bfloat16),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    rows: tuple[int, ...], w13: tuple[int, ...], w2: tuple[int, ...], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        block_swiglu(torch.ones(rows, dtype=dtype), torch.ones(w13), torch.ones(w2), COUNTS_E)


def test_an_error_in_a_thread_is_raised() -> None:
    def fail(part: range) -> None:
        raise RuntimeError(f"at {part.start}")

    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="at 0"):
            for_parts(fail, [1, 1])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("counts", [[0, 0, 0], [5], [1, 0, 0, 9], [0, 4, 4, 4, 0], [100, 1, 1]])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_every_expert_is_in_one_part(counts: list[int], num_parts: int) -> None:
    parts = parts_of(counts, num_parts)
    assert [index for part in parts for index in part] == list(range(len(counts)))
    assert len(parts) <= num_parts


@pytest.mark.parametrize("way", BLOCK_WAYS)
def test_frozen_experts_pass_the_same_gradient_on_and_have_none(way: Way) -> None:
    generator = torch.Generator().manual_seed(1)
    x_MD, w13_EGD, w2_EDF = (torch.randn(s, generator=generator) for s in ((11, 16), (5, 48, 16), (5, 16, 24)))
    gradients = []
    for trained in (True, False):
        x, w13, w2 = x_MD.clone().requires_grad_(), *(w.clone().requires_grad_(trained) for w in (w13_EGD, w2_EDF))
        way(x, w13, w2, COUNTS_E).square().sum().backward()
        assert (w13.grad is not None) == (w2.grad is not None) == trained
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_frozen_experts_cost_no_products_for_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, ...]] = []
    multiply = torch.mm

    def counting(*arguments: Tensor, **options: Tensor) -> Tensor:
        products.append(tuple(arguments[0].shape))
        return multiply(*arguments, **options)

    monkeypatch.setattr(torch, "mm", counting)
    x_MD, w13_EGD, w2_EDF = torch.ones(11, 16).requires_grad_(), torch.ones(5, 48, 16), torch.ones(5, 16, 24)
    by_products(x_MD, w13_EGD, w2_EDF, COUNTS_E).sum().backward()
    assert len(products) == 3 * (2 + 2), "two forward, two backward, for each expert with tokens; none for weights"


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
        dispatched = dispatch(x_TD, Routing(torch.empty(6, 5), experts_TK, weights_TK), 5, ExpertParallel())
        owners_N = torch.arange(5).repeat_interleave(dispatched.counts_E)
        return combine(send_home(receive(dispatched) * (owners_N[:, None] + 1), dispatched), dispatched)

    expected_TD = x_TD * ((experts_TK + 1) * weights_TK).sum(1, keepdim=True)
    torch.testing.assert_close(scaled_by_expert(x_TD, weights_TK), expected_TD, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(scaled_by_expert, (x_TD.requires_grad_(), weights_TK.requires_grad_()))


@pytest.mark.parametrize("balancing", [None, Balancing(capacity_factor=0.5)])
def test_a_layer_may_have_no_tokens(balancing: Balancing | None) -> None:
    """As a process that shares the experts of others."""
    layer = MoE(CONFIG, ExpertParallel(), balancing)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    x_TD = torch.empty(0, 16).requires_grad_()
    out_TD, balance = layer(x_TD, (0,))
    (out_TD.sum() + balance.loss_sum).backward()
    assert out_TD.shape == (0, 16)
    assert balance.loss_sum == 0
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
