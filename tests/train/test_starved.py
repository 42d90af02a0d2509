"""Experts, or all experts of a worker, that get no token for whole steps: training goes on, and is the same.

Four workers take the steps of each case twice: each with all experts, and with experts shared by two and two. Of the
last step's rows the second two have none: they compute stand-ins only.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moe.config import Tuning
from moe.freeze import freeze
from moe.hf import checkpoint_slices
from moe.init import initialize
from moe.model import HybridModel
from moe.router import Router
from ray_jobs.train.batches import RowOrder, collate, share_of_worker
from ray_jobs.train.engine import TrainingStep, balancing, build_engine, expert_parallel_group
from ray_jobs.train.step import take_step
from service.spec.job import JobSpec
from tests.train.conftest import NUM_WORKERS
from tests.train.parallel_run import CONFIG, LEARNING_RATE, NUM_ROWS, WEIGHT_DECAY, job_spec, packed_rows
from tests.train.test_parallel import TOLERANCE, WEIGHT_TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the four workers start with the first of them

STEPS = 4
ORDER = RowOrder(NUM_ROWS, epochs=2, global_batch_rows=8, seed=3)


class Case(NamedTuple):
    """Which experts starve, in what kind of training."""

    starved: tuple[int, ...]
    recompute: bool = False
    tuning: Tuning = "full"
    capacity_factor: float | None = None
    balance_loss_unit: str = "row"


CASES = {
    "one expert": Case((3,)),
    "a worker": Case((2, 3)),
    "a worker, recomputed, dropping": Case((0, 1), recompute=True, capacity_factor=0.75, balance_loss_unit="batch"),
    "a worker, recomputed, frozen": Case((2, 3), recompute=True, tuning="frozen_moe"),
    "a worker, routers only": Case((2, 3), tuning="router_only"),
}
MUTATED = "expert gradients halved"
"""The mutation that the comparison must see, of the case of a starved worker."""


class Outcome(NamedTuple):
    """Figures of each step, which all workers know, and one worker's weights by published key."""

    losses: list[float]
    balances: list[float]
    norms: list[list[float]]
    copies_SLE: Tensor
    dropped: list[float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def spec_of(case: Case, expert_parallel: int) -> JobSpec:
    options = Namespace(batch_rows=ORDER.global_batch_rows, precision="fp32", expert_parallel=expert_parallel)
    document = job_spec(options, NUM_WORKERS).model_dump(mode="json")
    document["train"] |= {"capacity_factor": case.capacity_factor, "balance_loss_unit": case.balance_loss_unit}
    return JobSpec.model_validate(document)


def starve(model: HybridModel, starved: tuple[int, ...]) -> None:
    """No token chooses these experts, in any layer."""

    def without(_gate: Any, _arguments: Any, logits_TE: Tensor) -> Tensor:
        return logits_TE.index_fill(1, torch.tensor(starved), -torch.inf)

    for module in model.modules():
        if isinstance(module, Router):
            module.gate.register_forward_hook(without)


def weights(model: HybridModel) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in checkpoint_slices(model)}


def train(case: Case, expert_parallel: int, *, gradient_scale: float = 1.0) -> Outcome:
    spec = spec_of(case, expert_parallel)
    parallel = expert_parallel_group(expert_parallel)
    model = HybridModel(CONFIG, parallel, balancing(spec), activation_checkpointing=case.recompute)
    initialize(model, seed=0)
    starve(model, case.starved)
    freeze(model, case.tuning)
    if gradient_scale != 1:
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.register_hook(lambda gradient: gradient_scale * gradient)
    before = weights(model)
    engine = build_engine(TrainingStep(model, 0.01, 1), spec)
    rows, taken = packed_rows(), []
    for step in range(STEPS):
        mine = share_of_worker(ORDER.rows_of_step(step), dist.get_rank(), NUM_WORKERS)
        assert any(row is not None for row in mine) == (step < STEPS - 1 or dist.get_rank() < NUM_WORKERS / 2)
        batches = [collate([None if row is None else rows[row]], ["c"], "cpu") for row in mine]
        taken.append(take_step(engine, batches, LEARNING_RATE, 1))
    return Outcome(
        [one.sums.loss for one in taken],
        [float(one.sums.balance_L.sum()) for one in taken],
        [[one.norms.dense, one.norms.expert] for one in taken],
        torch.stack([one.sums.copies_LE for one in taken]),
        [float(one.sums.dropped_L.sum()) for one in taken],
        before,
        weights(model),
    )


def on_four_workers(directory: str) -> str:
    """The file with the outcomes, by case and number of workers that share the experts."""
    outcomes = {(name, size): train(case, size) for name, case in CASES.items() for size in (1, 2)}
    outcomes[MUTATED, 2] = train(CASES["a worker"], 2, gradient_scale=0.5)
    file = Path(directory) / f"starved-{dist.get_rank()}.pt"
    torch.save({key: tuple(outcome) for key, outcome in outcomes.items()}, file)
    return str(file)


Outcomes = dict[tuple[str, int], list[Outcome]]
"""Of each worker."""


@pytest.fixture(scope="module")
def outcomes(four_workers: list[dict[str, Any]]) -> Outcomes:
    left = [torch.load(worker["starved"]) for worker in four_workers]
    return {key: [Outcome(*one[key]) for one in left] for key in left[0]}


def assert_same(shared: list[Outcome], alone: Outcome) -> None:
    for one in shared:
        assert one.losses == pytest.approx(alone.losses, rel=TOLERANCE), "losses"
        assert one.balances == pytest.approx(alone.balances, rel=TOLERANCE), "balances"
        for mine, expected in zip(one.norms, alone.norms, strict=True):
            assert mine == pytest.approx(expected, rel=TOLERANCE), "norms of dense and expert gradients"
        assert torch.equal(one.copies_SLE, alone.copies_SLE)
        assert one.dropped == alone.dropped
        for key, tensor in one.after.items():
            torch.testing.assert_close(tensor, alone.after[key], rtol=0, atol=WEIGHT_TOLERANCE)
    assert {key for one in shared for key in one.after} == alone.after.keys()


@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same_whoever_owns_the_experts(name: str, outcomes: Outcomes) -> None:
    case, alone = CASES[name], outcomes[name, 1][0]
    starved = (alone.copies_SLE == 0).all(1).nonzero()[:, 1].tolist()
    assert starved == list(case.starved) * STEPS, "these and no others, at every step"
    assert (sum(alone.dropped) > 0) == (case.capacity_factor is not None)
    assert all((expert > 0) == (case.tuning == "full") for _, expert in alone.norms)
    assert_same(outcomes[name, 2], alone)


def test_the_comparison_notices_another_gradient_of_experts(outcomes: Outcomes) -> None:
    with pytest.raises(AssertionError, match="norms"):
        assert_same(outcomes[MUTATED, 2], outcomes["a worker", 1][0])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_an_expert_without_tokens_decays_and_does_no_more(name: str, size: int, outcomes: Outcomes) -> None:
    """Its gradient is zero, not absent. Decay rounds a product and a difference a step, each by 2^-24 of itself."""
    case = CASES[name]
    factor, rounding = (1.0, 0.0) if case.tuning != "full" else (1 - LEARNING_RATE * WEIGHT_DECAY, 2 * STEPS * 2**-24)
    checked = 0
    for one in outcomes[name, size]:
        for key, after in one.after.items():
            if ".experts." in key and int(key.split(".experts.")[1].split(".")[0]) in case.starved:
                expected = one.before[key].double() * factor**STEPS
                assert ((after.double() - expected).abs() <= rounding * expected.abs()).all(), key
                checked += 1
    assert checked > 0
