"""Dropping what an expert has no room for, against a loop over the copies, and against DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import moe.capacity
import moe.dispatch
import moe.model
from moe.balance import Balancing
from moe.capacity import drop_over_capacity, room
from moe.config import MoEConfig
from moe.dispatch import ExpertParallel
from moe.exchange import Exchange
from moe.experts import Experts, grouped_swiglu
from moe.model import MoE
from moe.permutation import Permutation
from moe.router import Router, Routing
from tests.moe.test_parity import GRADIENT_TOLERANCE, RELATIVE_TOLERANCE
from tests.processes import run_processes

CONFIG = MoEConfig(hidden_size=16, num_heads=2, num_kv_heads=2, expert_intermediate_size=24, num_experts=5)
ROW_LENGTHS = (8, 1, 11)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def routed(logits_TE: Tensor, top_k: int) -> Routing:
    """The router's answer to given logits."""
    num_experts = logits_TE.shape[1]
    config = replace(CONFIG, hidden_size=num_experts, num_heads=1, num_kv_heads=1, num_experts=num_experts, top_k=top_k)
    router = Router(config)
    torch.nn.init.eye_(router.gate.weight)
    return router(logits_TE)


def dropped_by_loop(experts_TK: Tensor, row_lengths: tuple[int, ...], num_experts: int, factor: float) -> Tensor:
    dropped_TK = torch.zeros_like(experts_TK, dtype=torch.bool)
    num_choices = experts_TK.shape[1]
    first = 0
    for length in row_lengths:
        taken = [0] * num_experts
        for choice in range(num_choices):
            for token in range(first, first + length):
                expert = int(experts_TK[token, choice])
                dropped_TK[token, choice] = taken[expert] >= factor * num_choices * length / num_experts
                taken[expert] += 1
        first += length
    return dropped_TK


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.25, 1.0, 1.25, 4.0])
def test_dropped_are_the_ones_that_a_loop_finds_no_room_for(top_k: int, factor: float) -> None:
    logits_TE = random(60, 6) + torch.tensor([1.0, 0.5, 0, 0, 0, -1])
    rows = (25, 1, 34)
    routing = drop_over_capacity(routed(logits_TE, top_k), rows, factor)
    assert routing.dropped_TK is not None
    assert routing.dropped_TK.equal(dropped_by_loop(routing.experts_TK, rows, 6, factor))
    assert routing.dropped_TK.any() == (factor < 4)
    of_one_row = drop_over_capacity(routed(logits_TE, top_k), (60,), factor)
    assert routing.dropped_TK.equal(of_one_row.dropped_TK) == (factor == 4), "rows share no room"


def test_room_is_rounded_up_and_exact() -> None:
    assert room(2 * 4096, 128, 1.0) == 64
    assert room(2 * 1, 128, 1.0) == 1
    assert room(2 * 50, 1, 2.2) == 220, "not 221"
    assert room(2 * 50, 3, 1.0) == 34


SKEWED_LOGITS_TE = random(61, 8) + torch.linspace(1, -1, 8)
FACTORS = [0.25, 0.5, 1.0, 1.25, 2.0]


def _run_deepspeed(_index: int, path: str) -> None:
    """In a process of its own: one that has imported DeepSpeed is no place to start Ray from."""
    from deepspeed.moe.sharded_moe import top2gating

    options = {"min_capacity": 0, "drop_tokens": True, "top2_2nd_expert_sampling": False}
    torch.save([top2gating(SKEWED_LOGITS_TE, factor, **options)[1].sum(-1) for factor in FACTORS], path)


def test_copies_and_weights_are_those_of_deepspeed(tmp_path: Path) -> None:
    run_processes(_run_deepspeed, f"{tmp_path}/weights", number=1)
    for factor, expected_TE in zip(FACTORS, torch.load(tmp_path / "weights"), strict=True):
        routing = drop_over_capacity(routed(SKEWED_LOGITS_TE, 2), (61,), factor)
        weights_TE = torch.zeros(61, 8).scatter(1, routing.experts_TK, routing.weights_TK)
        assert (weights_TE > 0).equal(expected_TE > 0)
        # one sum and one quotient of numbers below 1
        torch.testing.assert_close(weights_TE, expected_TE, rtol=0, atol=2 * 2**-24)
        assert routing.dropped_TK is not None
        assert (routing.weights_TK == 0).equal(routing.dropped_TK)
        if factor < 1:
            assert set(routing.dropped_TK.sum(1).tolist()) == {0, 1, 2}, "tokens that lose none, one and both"


def layer(capacity_factor: float | None = 0.5) -> MoE:
    moe_layer = MoE(CONFIG, ExpertParallel(), Balancing(capacity_factor))
    for index, parameter in enumerate(moe_layer.parameters()):
        parameter.data = 0.5 * random(*parameter.shape, seed=index)
    return moe_layer


def obvious(moe_layer: MoE, x_TD: Tensor, factor: float) -> Tensor:
    """One copy at a time, in the input's precision."""
    gate_ED, w13_EGD, w2_EDF = (parameter.to(x_TD.dtype) for parameter in moe_layer.parameters())
    top_TK, experts_TK = torch.softmax(x_TD @ gate_ED.T, -1).topk(CONFIG.top_k)
    kept_TK = ~dropped_by_loop(experts_TK, ROW_LENGTHS, CONFIG.num_experts, factor)
    rows = []
    for x_D, top_K, experts_K, kept_K in zip(x_TD, top_TK, experts_TK, kept_TK, strict=True):
        out_D = torch.zeros_like(x_D)
        for expert, probability in zip(experts_K[kept_K], top_K[kept_K], strict=True):
            w1_FD, w3_FD = w13_EGD[expert].chunk(2)
            y_D = w2_EDF[expert] @ (F.silu(w1_FD @ x_D) * (w3_FD @ x_D))
            out_D = out_D + probability / top_K[kept_K].sum() * y_D
        rows.append(out_D)
    return torch.stack(rows)


def errors() -> dict[str, float]:
    """Distance of output and gradients from the obvious formula in fp64, relative to the largest element."""
    results = []
    for dtype in (torch.float32, torch.float64):
        moe_layer, x_TD = layer(), random(20, 16, seed=7).to(dtype).requires_grad_()
        out_TD = moe_layer(x_TD, ROW_LENGTHS)[0] if dtype == torch.float32 else obvious(moe_layer, x_TD, 0.5)
        out_TD.backward(random(20, 16, seed=8).to(dtype))
        gradients = {name: parameter.grad for name, parameter in moe_layer.named_parameters()}
        results.append({"output": out_TD.detach(), "input": x_TD.grad} | gradients)
    mine, true = results
    return {name: float((mine[name] - value).abs().max() / value.abs().max()) for name, value in true.items()}


@pytest.fixture
def _unwritten_is_nan() -> Iterator[None]:
    """What was allocated and not written to is not a number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _on_a_cpu(_patch: pytest.MonkeyPatch) -> None:
    """As it is."""


def _as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """The dropped copies' rows stay, behind the others."""

    def without_counting(counts_E: Tensor, num_copies: int, _parallel: ExpertParallel) -> tuple[Tensor, Exchange]:
        return counts_E[None], Exchange(None, [num_copies], [num_copies])

    def grouped(self: Experts, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        assert len(x_MD) == 40 > counts_E.sum()
        return grouped_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)

    patch.setattr(moe.dispatch, "_announce", without_counting)
    patch.setattr(Experts, "forward", grouped)


def assert_close_to_obvious(distances: dict[str, float]) -> None:
    """The router chooses and weighs like a layer of `test_parity`, and the experts are part of one."""
    for name, distance in distances.items():
        assert distance < (RELATIVE_TOLERANCE if name == "output" else GRADIENT_TOLERANCE), name


Patching = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("on", [_on_a_cpu, _as_on_a_gpu])
@pytest.mark.usefixtures("_unwritten_is_nan")
def test_a_layer_with_drops_is_the_obvious_formula(on: Patching, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    assert_close_to_obvious(errors())


def _tokens_before_choices(patch: pytest.MonkeyPatch) -> None:
    find = moe.capacity._finds_no_room
    patch.setattr(
        moe.capacity, "_finds_no_room", lambda experts_SK, room: find(experts_SK.view(-1, 1), room).view(-1, 2)
    )


def _late_tokens_first(patch: pytest.MonkeyPatch) -> None:
    find = moe.capacity._finds_no_room
    patch.setattr(moe.capacity, "_finds_no_room", lambda experts_SK, room: find(experts_SK.flip(0), room).flip(0))


def _weights_as_before_the_drops(patch: pytest.MonkeyPatch) -> None:
    drop = moe.model.drop_over_capacity

    def keep_weights(routing: Routing, row_lengths: tuple[int, ...], factor: float) -> Routing:
        dropped = drop(routing, row_lengths, factor)
        return replace(dropped, weights_TK=routing.weights_TK.masked_fill(dropped.dropped_TK, 0))

    patch.setattr(moe.model, "drop_over_capacity", keep_weights)


def _dropped_copies_have_a_gradient(patch: pytest.MonkeyPatch) -> None:
    without = Permutation.without
    patch.setattr(Permutation, "without", lambda *arguments: replace(without(*arguments), dropped_N=None))


def _rows_behind_the_blocks_are_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Permutation, "without", lambda self, dropped_N, num_rows: replace(self, dropped_N=dropped_N))


@pytest.mark.parametrize(
    ("mutate", "on"),
    [
        (_tokens_before_choices, _on_a_cpu),
        (_late_tokens_first, _on_a_cpu),
        (_weights_as_before_the_drops, _on_a_cpu),
        (_dropped_copies_have_a_gradient, _on_a_cpu),
        (_rows_behind_the_blocks_are_read, _as_on_a_gpu),
    ],
)
@pytest.mark.usefixtures("_unwritten_is_nan")
def test_the_comparison_notices(mutate: Patching, on: Patching, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    on(monkeypatch)
    distances = errors()
    assert any(not distance < 100 * GRADIENT_TOLERANCE for distance in distances.values())
    with pytest.raises(AssertionError):
        assert_close_to_obvious(distances)


def test_drops_are_counted_apart_from_choices_and_balance_loss() -> None:
    x_TD = random(20, 16, seed=7)
    limited, unlimited = (layer(factor)(x_TD, ROW_LENGTHS)[1] for factor in (0.5, None))
    experts_TK = layer().router(x_TD).experts_TK
    assert limited.dropped == dropped_by_loop(experts_TK, ROW_LENGTHS, CONFIG.num_experts, 0.5).sum() > 0
    assert unlimited.dropped == 0
    assert limited.tokens_per_expert_E.equal(unlimited.tokens_per_expert_E)
    assert limited.loss_sum.equal(unlimited.loss_sum)


def test_tokens_behind_the_rows_count_nowhere_and_take_no_room() -> None:
    """They all want one expert, which would have no room left for a real token."""
    x_TD = random(20, 16, seed=7)
    moe_layer = layer().requires_grad_(requires_grad=False)
    wanted = moe_layer.router(x_TD).experts_TK.flatten().bincount().argmax()
    padding_TD = 0.5 * moe_layer.router.gate.weight[wanted].expand(30, -1)
    padded_TD = torch.cat([x_TD, padding_TD])
    assert (moe_layer.router(padding_TD).experts_TK[:, 0] == wanted).all()
    out_TD, alone = moe_layer(x_TD, ROW_LENGTHS)
    padded_out_TD, padded = moe_layer(padded_TD, ROW_LENGTHS)
    # 50 rows instead of 20 in the gate's product; the experts' is of more rows, too
    torch.testing.assert_close(padded_out_TD[:20], out_TD, rtol=0, atol=RELATIVE_TOLERANCE * float(out_TD.abs().max()))
    assert padded.tokens_per_expert_E.equal(alone.tokens_per_expert_E)
    assert padded.dropped == alone.dropped > 0
    for name in ("loss_sum", "entropy_sum"):
        expected = getattr(alone, name)
        torch.testing.assert_close(getattr(padded, name), expected, rtol=RELATIVE_TOLERANCE, atol=0)
    counted = moe_layer(padded_TD, (*ROW_LENGTHS, 30))[1]
    assert counted.dropped > padded.dropped
    assert counted.entropy_sum > (1 + 100 * RELATIVE_TOLERANCE) * padded.entropy_sum
    assert counted.loss_sum > (1 + 100 * RELATIVE_TOLERANCE) * padded.loss_sum


def test_evaluation_drops_nothing() -> None:
    x_TD = random(20, 16, seed=7)
    expected_TD, _ = layer(None)(x_TD, ROW_LENGTHS)
    assert not layer()(x_TD, ROW_LENGTHS)[0].equal(expected_TD)
    out_TD, balance = layer().eval()(x_TD, ROW_LENGTHS)
    assert out_TD.equal(expected_TD)
    assert balance.dropped == 0
