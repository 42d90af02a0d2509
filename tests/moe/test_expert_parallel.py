"""Four rows on four processes, their experts shared by one, two or four of them, are the four rows on one process.

The processes are started once and run all cases; each leaves its share of every result behind, for the tests to add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import moe.model
from moe.attention import Attention, Documents
from moe.balance import Balancing, LayerBalance
from moe.dispatch import Dispatched, ExpertParallel
from moe.exchange import Exchange
from moe.experts import Experts, grouped_swiglu
from moe.hf import checkpoint_slices
from moe.model import PackedBatch, ResidualMLP
from moe.router import Routing
from tests.moe.conftest import TINY, tiny_model
from tests.moe.test_parity import GRADIENT_TOLERANCE, RELATIVE_TOLERANCE
from tests.processes import run_processes

K = 0.5
"""Of the balance loss: large, so that its share of the gradient shows."""

DROPPING = Balancing(capacity_factor=0.75)


@dataclass(frozen=True)
class Row:
    """A packed row: its documents' lengths, its tokens, and what each of them is to predict; -100 is nothing."""

    documents: list[int]
    tokens_T: Tensor
    targets_T: Tensor
    is_real: bool = True

    @property
    def length(self) -> int:
        """Tokens that count."""
        return self.is_real * len(self.tokens_T)

    @classmethod
    def random(cls, documents: list[int], seed: int) -> Row:
        generator = torch.Generator().manual_seed(seed)
        tokens_T, targets_T = torch.randint(0, TINY.vocab_size, (2, sum(documents)), generator=generator)
        return cls(documents, tokens_T, targets_T)


ROWS = [Row.random(documents, seed) for seed, documents in enumerate([[7, 5], [1], [12], [3, 9]])]
STAND_IN = Row([1], torch.tensor([0]), torch.tensor([-100]), is_real=False)
"""What a process computes for want of rows."""
ONE_TOKEN = [Row([1], torch.tensor([7]), torch.tensor([7]))] * 4
"""All copies of a layer go to two experts: with one expert a process, two processes receive nothing."""


@dataclass(frozen=True)
class Share:
    """What one process makes of its rows; losses and gradients add up over processes, by published key."""

    hidden_TD: Tensor
    losses: Tensor
    copies_LE: Tensor
    dropped_L: Tensor
    gradients: dict[str, Tensor]


def share(
    rows: Sequence[Row],
    all_rows: Sequence[Row],
    parallel: ExpertParallel | None = None,
    balancing: Balancing | None = None,
) -> Share:
    """Forward and backward pass, losses divided by the tokens of all rows."""
    model = tiny_model(parallel, balancing)
    num_tokens = sum(row.length for row in all_rows)
    documents = Documents.from_lengths([length for row in rows for length in row.documents])
    tokens_T, targets_T = (torch.cat([getattr(row, name) for row in rows]) for name in ("tokens_T", "targets_T"))
    hidden_TD, balances = model(PackedBatch(tokens_T, documents, tuple(row.length for row in rows)))
    cross_entropy = F.cross_entropy(model.lm_head(hidden_TD), targets_T, reduction="sum") / num_tokens
    balance = K * torch.stack([balance.loss_sum for balance in balances]).sum() / num_tokens
    (cross_entropy + balance).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None, "an expert without tokens has zeros"
        parameter.data = parameter.grad
    return Share(
        hidden_TD.detach()[: sum(row.length for row in rows)],
        torch.stack([cross_entropy, balance]).detach(),
        torch.stack([balance.tokens_per_expert_E for balance in balances]),
        torch.stack([balance.dropped for balance in balances]),
        {key: gradient.clone() for key, gradient in checkpoint_slices(model)},
    )


def together(shares: Sequence[Share]) -> Share:
    """Processes that hold a tensor add up their gradients of it; the others have none."""
    keys = {key for one in shares for key in one.gradients}
    return Share(
        torch.cat([one.hidden_TD for one in shares]),
        torch.stack([one.losses for one in shares]).sum(0),
        torch.stack([one.copies_LE for one in shares]).sum(0),
        torch.stack([one.dropped_L for one in shares]).sum(0),
        {key: torch.stack([one.gradients[key] for one in shares if key in one.gradients]).sum(0) for key in keys},
    )


def _copies_sent_to_the_next_owner(patch: pytest.MonkeyPatch) -> None:
    dispatch = moe.model.dispatch

    def astray(x_TD: Tensor, routing: Routing, num_experts: int, parallel: ExpertParallel) -> Dispatched:
        elsewhere = replace(routing, experts_TK=(routing.experts_TK + 1) % num_experts)
        return dispatch(x_TD, elsewhere, num_experts, parallel)

    patch.setattr(moe.model, "dispatch", astray)


def _expert_gradients_averaged(patch: pytest.MonkeyPatch) -> None:
    """Divided by the processes that share the experts, as if all of them had computed the same ones."""
    forward = Experts.forward

    def averaged(self: Experts, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        for parameter in self.parameters():
            parameter.register_hook(lambda gradient: gradient / 4)
        return forward(self, x_MD, counts_E)

    patch.setattr(Experts, "forward", averaged)


def _balance_loss_per_process(patch: pytest.MonkeyPatch) -> None:
    """Each process divides by its own tokens, and counts as much as any other."""
    measure = moe.model.layer_balance

    def per_process(routing: Routing, row_lengths: tuple[int, ...], _group: None) -> LayerBalance:
        balance = measure(routing, row_lengths)
        tokens = sum(row.length for row in ROWS)
        return replace(balance, loss_sum=balance.loss_sum / sum(row_lengths) * tokens / 4)

    patch.setattr(moe.model, "layer_balance", per_process)


MUTATIONS = [_copies_sent_to_the_next_owner, _expert_gradients_averaged, _balance_loss_per_process]


def _waiting_at_once(patch: pytest.MonkeyPatch) -> None:
    start = Exchange._start

    def start_and_wait(self: Exchange, *arguments: Any) -> None:
        start(self, *arguments)
        assert self._under_way is not None
        self._under_way[0].wait()

    patch.setattr(Exchange, "_start", start_and_wait)


def _reads_of_the_host(row: Row, parallel: ExpertParallel) -> int:
    """Times that the host asks the device for values in both passes, experts as on a GPU."""
    reads = 0
    read = Tensor.tolist

    def counting(self: Tensor) -> list[int]:
        nonlocal reads
        reads += 1
        return read(self)

    def as_on_a_gpu(self: Experts, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        return grouped_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experts, "forward", as_on_a_gpu)
        patch.setattr(Tensor, "tolist", counting)
        share([row], ROWS, parallel)
    return reads


def _layer(parallel: ExpertParallel | None, tokens: range, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of one MoE layer, of so many of eight tokens."""
    layer = tiny_model(parallel).layers[0].block_sparse_moe.to(dtype)
    everything = torch.randn(2, 8, TINY.hidden_size, generator=torch.Generator().manual_seed(3)).to(dtype)
    x_TD, grad_TD = everything[:, tokens.start : tokens.stop]
    x_TD = x_TD.clone().requires_grad_()
    out_TD, _ = layer(x_TD, (len(x_TD),))
    out_TD.backward(grad_TD)
    w13_EGD, w2_EDF = layer.experts.parameters()
    results = {"out": out_TD.detach(), "x": x_TD.grad, "w13": w13_EGD.grad, "w2": w2_EDF.grad}
    assert all(result is not None for result in results.values())
    return results  # type: ignore[return-value]


UNEVEN = (range(5), range(5, 5), range(5, 8), range(8, 8))
"""Tokens of each process: two have none."""


def _rows_sent(row: Row, parallel: ExpertParallel, balancing: Balancing) -> int:
    """Copies, outputs, and the gradients of both, that this process sends to itself and others."""
    sent = []
    start = Exchange._start

    def counting(self: Exchange, rows: Tensor, *arguments: Any) -> None:
        sent.append(len(rows))
        start(self, rows, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "_start", counting)
        share([row], ROWS, parallel, balancing)
    return sum(sent)


def _events_in_order(row: Row, parallel: ExpertParallel) -> list[str]:
    """What both passes do, one after another."""
    events = []

    def logged(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            events.append(event)
            out = function(*arguments)
            if isinstance(out, Tensor) and out.grad_fn is not None:
                out.register_hook(lambda _gradient: events.append(event))
            return out

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name, event in (
            (Exchange, "_start", "send"),
            (Exchange, "wait", "wait"),
            (Attention, "forward", "attention"),
            (ResidualMLP, "forward", "mlp"),
            (Experts, "forward", "experts"),
        ):
            patch.setattr(owner, name, logged(event, getattr(owner, name)))
        share([row], ROWS, parallel)
    return events


@dataclass(frozen=True)
class LeftBehind:
    """By one process."""

    shares: dict[str, Share]
    rows_sent: int
    reads: int
    events: list[str]
    layers: dict[torch.dtype, dict[str, Tensor]]


def _process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=4)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    among_1, among_2, among_4 = map(ExpertParallel, (None, pairs[rank // 2], dist.group.WORLD))
    row = ROWS[rank]
    shares = {f"among {parallel.size}": share([row], ROWS, parallel) for parallel in (among_1, among_2, among_4)}
    for parallel in (among_1, among_2, among_4):
        shares[f"dropping among {parallel.size}"] = share([row], ROWS, parallel, DROPPING)
    per_batch = Balancing(loss_group=dist.group.WORLD)
    shares["batch"] = share([row], ROWS, among_2, per_batch)
    rows = [*ROWS[:3], STAND_IN]
    shares["batch of three"] = share([rows[rank]], rows, among_2, per_batch)
    shares["stand-in counted"] = share([replace(rows[rank], is_real=True)], rows, among_2, per_batch)
    shares["one token"] = share([ONE_TOKEN[rank]], ONE_TOKEN, among_4)
    for change in (*MUTATIONS, _waiting_at_once):
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            shares[change.__name__] = share([row], ROWS, among_4)
    left = LeftBehind(
        shares,
        _rows_sent(row, among_4, DROPPING),
        _reads_of_the_host(row, among_4),
        _events_in_order(row, among_4),
        {dtype: _layer(among_4, UNEVEN[rank], dtype) for dtype in (torch.float32, torch.bfloat16)},
    )
    torch.save(left, f"{directory}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[LeftBehind]:
    directory = tmp_path_factory.mktemp("processes")
    run_processes(_process, str(directory), number=4)
    return [torch.load(directory / f"{rank}", weights_only=False) for rank in range(4)]


@pytest.fixture(scope="module")
def spread(processes: list[LeftBehind]) -> dict[str, Share]:
    return {case: together([left.shares[case] for left in processes]) for case in processes[0].shares}


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest element; of zeros, anything else is infinitely far away."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo().tiny))


def assert_same(actual: Share, expected: Share) -> None:
    """Neither is further from exact arithmetic than `test_parity` allows a model on one process to be."""
    assert actual.copies_LE.equal(expected.copies_LE)
    assert actual.dropped_L.equal(expected.dropped_L)
    assert error(actual.hidden_TD, expected.hidden_TD) < 2 * RELATIVE_TOLERANCE, "hidden states"
    for name, mine, alone in zip(("cross-entropy", "balance"), actual.losses, expected.losses, strict=True):
        assert error(mine, alone) < 2 * RELATIVE_TOLERANCE, name
    assert actual.gradients.keys() == expected.gradients.keys()
    for key, gradient in expected.gradients.items():
        assert error(actual.gradients[key], gradient) < 2 * GRADIENT_TOLERANCE, key


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_processes_may_share_the_experts(size: int, spread: dict[str, Share]) -> None:
    assert_same(spread[f"among {size}"], share(ROWS, ROWS))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_is_dropped_does_not_depend_on_the_processes(size: int, spread: dict[str, Share]) -> None:
    alone = share(ROWS, ROWS, balancing=DROPPING)
    assert (alone.dropped_L > 0).all()
    assert_same(spread[f"dropping among {size}"], alone)
    with pytest.raises(AssertionError):
        assert_same(spread[f"among {size}"], alone)


def test_dropped_copies_are_not_sent(processes: list[LeftBehind], spread: dict[str, Share]) -> None:
    one = spread["dropping among 4"]
    assert sum(left.rows_sent for left in processes) == 4 * (one.copies_LE.sum() - one.dropped_L.sum())


def as_one_row(rows: Sequence[Row]) -> Row:
    documents = [length for row in rows for length in row.documents]
    return Row(documents, torch.cat([row.tokens_T for row in rows]), torch.cat([row.targets_T for row in rows]))


def test_balance_loss_of_a_batch_is_that_of_all_processes_rows_as_one(spread: dict[str, Share]) -> None:
    alone = share([as_one_row(ROWS)], ROWS)
    assert_same(spread["batch"], alone)
    with pytest.raises(AssertionError, match="balance"):
        assert_same(spread["among 2"], alone)


def test_a_process_without_rows_adds_nothing_to_the_balance_loss(spread: dict[str, Share]) -> None:
    alone = share([as_one_row(ROWS[:3])], ROWS[:3])
    assert_same(spread["batch of three"], alone)
    assert error(spread["stand-in counted"].losses[1], alone.losses[1]) > 100 * 2 * RELATIVE_TOLERANCE


def test_counts_are_added_up_once_a_layer_and_not_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that evaluate take unequal numbers of steps: one that waited for the others' counts would hang."""
    reduced = []
    monkeypatch.setattr(dist, "all_reduce", lambda counts_E, **_options: reduced.append(counts_E))
    model = tiny_model(balancing=Balancing(loss_group=dist.GroupMember.NON_GROUP_MEMBER))
    batch = PackedBatch(torch.arange(9), Documents.from_lengths([9]), (9,))
    model.eval()(batch)
    assert not reduced
    model.train()(batch)
    assert len(reduced) == TINY.num_layers


def test_processes_may_have_no_copies_for_their_experts(spread: dict[str, Share]) -> None:
    alone = share(ONE_TOKEN, ONE_TOKEN)
    assert (alone.copies_LE == 0).sum(1).tolist() == [2] * TINY.num_layers
    assert_same(spread["one token"], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processes_without_tokens_serve_the_others(dtype: torch.dtype, processes: list[LeftBehind]) -> None:
    """Each expert gets the rows that it would get on one process, in the same order: the bits are equal.

    Not so the gradients of the tokens, which also come through the gate, a product of as many rows as there are tokens.
    """
    alone = _layer(None, range(8), dtype)
    spread = {name: torch.cat([left.layers[dtype][name] for left in processes]) for name in alone}
    assert alone["out"].any()
    for name in ("out", "w13", "w2"):
        assert spread[name].equal(alone[name]), name
    rounding = 2 * GRADIENT_TOLERANCE if dtype == torch.float32 else 2 * 2**-8  # of two parts and of their sum
    assert error(spread["x"].float(), alone["x"].float()) < rounding


def test_processes_must_divide_the_experts_and_be_in_the_group() -> None:
    class OfThree(ExpertParallel):
        size = 3  # type: ignore[assignment]

    with pytest.raises(ValueError, match="expert-parallel size 3 does not divide 4 experts"):
        tiny_model(OfThree())
    with pytest.raises(ValueError, match="this process is not in the group"):
        ExpertParallel(dist.GroupMember.NON_GROUP_MEMBER)


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_the_comparison_notices(mutate: Callable[[pytest.MonkeyPatch], None], spread: dict[str, Share]) -> None:
    mutated, alone = spread[mutate.__name__], share(ROWS, ROWS)
    noticed = {key: error(mutated.gradients[key], gradient) for key, gradient in alone.gradients.items()}
    assert max(noticed.values()) > 100 * 2 * GRADIENT_TOLERANCE
    with pytest.raises(AssertionError):
        assert_same(mutated, alone)


def test_the_split_sizes_are_all_that_the_host_reads(processes: list[LeftBehind]) -> None:
    assert [left.reads for left in processes] == [TINY.num_layers] * 4


def test_copies_travel_beside_the_dense_part_in_both_passes(processes: list[LeftBehind]) -> None:
    forward = ["send", "attention", "wait", "experts", "send", "mlp", "wait"]
    backward = ["send", "mlp", "wait", "experts", "send", "attention", "wait"]
    for left in processes:
        assert left.events == TINY.num_layers * forward + TINY.num_layers * backward


def test_travelling_beside_other_work_changes_no_bit(processes: list[LeftBehind]) -> None:
    for left in processes:
        beside, alone = left.shares["among 4"], left.shares["_waiting_at_once"]
        assert beside.hidden_TD.equal(alone.hidden_TD)
        assert all(gradient.equal(alone.gradients[key]) for key, gradient in beside.gradients.items())
