from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from moe.attention import Documents
from moe.balance import Balancing
from moe.model import HybridModel, PackedBatch
from moe.reference import reference_balance_loss
from moe.router import Router
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import TrainBatch, collate
from ray_jobs.train.engine import TrainingStep, balancing
from ray_jobs.train.step import take_step
from service.spec.job import JobSpec
from tests.moe.conftest import TINY, tiny_model
from tests.moe.test_parity import RELATIVE_TOLERANCE

K = 0.5
"""Of the balance loss: large, so that its share of the gradient shows."""


class PlainEngine:
    """The engine's surface, on one process and without an optimiser: gradients stay where autograd leaves them."""

    def __init__(self, step: TrainingStep) -> None:
        self.module, self.device = step, torch.device("cpu")
        groups = [{"name": "matrices", "lr": 0.0}, {"name": "experts", "lr": 0.0}]
        self.optimizer = SimpleNamespace(
            param_groups=groups, optimizer=SimpleNamespace(param_groups=groups), overflow=False
        )
        self.rates: list[list[float]] = []

    def __call__(self, batch: TrainBatch, trained: float, tokens: float) -> Any:
        return self.module(batch, trained, tokens)

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas, "the loss is divided by the global batch already"
        loss.backward()

    def is_gradient_accumulation_boundary(self) -> bool:
        parts: dict[int, list[Tensor]] = {0: [], 1: []}
        for name, parameter in self.module.named_parameters():
            parts[int(".experts." in name)].append(parameter.grad)  # type: ignore[arg-type]
        self.optimizer.averaged_gradients = parts
        return True

    def step(self) -> None:
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])


def rows() -> list[PackedRow]:
    """Rows that differ in length and in their share of trained tokens."""
    rng = np.random.default_rng(0)
    made = []
    for length, share in ((5, 0.9), (20, 0.2), (11, 0.5)):
        trained = rng.random(length) < share
        trained[0] = False
        tokens = rng.integers(0, TINY.vocab_size, length).astype(np.int32)
        made.append(PackedRow(tokens, trained, np.array([length], dtype=np.int32), ("c",)))
    return made


def naive_loss(model: HybridModel) -> Tensor:
    """Mean over the trained tokens of all rows, and each layer's balance loss, the rows weighted by their tokens."""
    nats, balance, trained, tokens = [], [], 0, 0
    inputs: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _module, arguments, _routing: inputs.append(arguments[0]))
    gates = [module.gate.weight for module in model.modules() if isinstance(module, Router)]
    for row in rows():
        inputs.clear()
        length = len(row.tokens)
        tokens_T = torch.tensor(row.tokens, dtype=torch.int64)
        hidden_TD, _ = model(PackedBatch(tokens_T, Documents.from_lengths([length]), (length,)))
        targets = np.flatnonzero(row.trained)
        nats.append(F.cross_entropy(model.lm_head(hidden_TD)[targets - 1], tokens_T[targets], reduction="sum"))
        balance += [length * reference_balance_loss(TINY, *pair) for pair in zip(gates, inputs, strict=True)]
        trained, tokens = trained + len(targets), tokens + length
    return torch.stack(nats).sum() / trained + K * torch.stack(balance).sum() / tokens


def test_gradients_are_those_of_the_mean_over_the_global_batch() -> None:
    engine = PlainEngine(TrainingStep(tiny_model(), K, 1))
    batches = [collate([row], ["c"], "cpu") for row in (*rows(), None)]
    taken = take_step(engine, batches, 0.25, 1)  # type: ignore[arg-type]
    model = tiny_model()
    naive_loss(model).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    experts = [parameter.grad.norm() for name, parameter in model.named_parameters() if ".experts." in name]
    assert taken.norms.expert == pytest.approx(float(torch.stack(experts).norm()), rel=3 * RELATIVE_TOLERANCE)
    assert taken.gradient_norm == pytest.approx(float(norm), rel=3 * RELATIVE_TOLERANCE)
    for (name, parameter), (_, actual) in zip(
        model.named_parameters(), engine.module.model.named_parameters(), strict=True
    ):
        # as between the model and its oracle: an activation, the logits, and a signal that came back
        tolerance = 3 * RELATIVE_TOLERANCE * float(parameter.grad.abs().max())
        torch.testing.assert_close(actual.grad, parameter.grad, rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_the_spec_decides_on_drops_and_on_the_unit_of_the_balance_loss(job_document: dict[str, Any]) -> None:
    assert balancing(JobSpec.model_validate(job_document)) == Balancing(None, None)
    job_document["train"] |= {"capacity_factor": 0.5, "balance_loss_unit": "batch"}
    assert balancing(JobSpec.model_validate(job_document)) == Balancing(0.5, dist.group.WORLD)

    def sums(batch: TrainBatch, balanced: Balancing | None) -> Tensor:
        return TrainingStep(tiny_model(balancing=balanced), K, 1)(batch, 1.0, 1.0)[1]

    batch = collate(rows(), ["c"], "cpu")
    as_one_row = replace(batch, packed=replace(batch.packed, row_lengths=(batch.num_tokens,)))
    assert sums(batch, Balancing(loss_group=dist.group.WORLD)).equal(sums(as_one_row, None))
    assert not sums(batch, None).equal(sums(as_one_row, None))


def test_metrics_and_rate_are_those_of_the_whole_step() -> None:
    engine = PlainEngine(TrainingStep(tiny_model(), K, 1))
    taken = take_step(engine, [collate([row], ["c"], "cpu") for row in (*rows(), None)], 0.25, 1)  # type: ignore[arg-type]
    assert engine.rates == [[0.25, 0.25]] * 4, "set before the engine steps, in every group"
    assert taken.num_tokens == sum(len(row.tokens) for row in rows())
    described = taken.sums.describe(["c"], taken.num_tokens, K)
    assert described["trained_tokens"] == sum(int(row.trained.sum()) for row in rows())
    total = described["loss"] + described["balance_loss"]  # type: ignore[operator]
    assert total == pytest.approx(naive_loss(tiny_model()).item(), rel=RELATIVE_TOLERANCE)
