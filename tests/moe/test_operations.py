"""The count of operations against PyTorch's own, on the real step of a small model."""

from __future__ import annotations

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe import experts as experts_module
from moe.config import Tuning
from moe.freeze import freeze
from moe.operations import Operations, TrainedParts, attended_pairs
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import TrainBatch, collate
from ray_jobs.train.engine import TrainingStep
from tests.moe.conftest import TINY, tiny_model

LENGTHS = (5, 1, 7)


def batch() -> TrainBatch:
    tokens = np.arange(sum(LENGTHS), dtype=np.int32)
    trained = np.isin(tokens, (1, 2, 4, 8))
    return collate([PackedRow(tokens, trained, np.array(LENGTHS, dtype=np.int32), ("c",) * 3)], ["c"], "cpu")


def counted(tuning: Tuning, *, activation_checkpointing: bool = False) -> int:
    """What PyTorch counts; it sees products that it makes itself, in this thread."""
    model = tiny_model(activation_checkpointing=activation_checkpointing)
    freeze(model, tuning)
    step = TrainingStep(model, 0.01, 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(batch(), 4.0, 13.0)[0].backward()
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def _products_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_module, "kernel_blocks", lambda *_: None)


def operations() -> Operations:
    one = batch()
    return Operations.of(TINY, tokens=one.num_tokens, attended=one.num_attended, trained=one.num_trained)


# PyTorch multiplies the whole square of a document's queries and keys, and masks it; of that a causal kernel needs the
# pairs on and below the diagonal, once forward and twice backward, where router-only tuning leaves out the first layer.
MASKED = 3 * 4 * TINY.num_layers * TINY.hidden_size * sum(length**2 - attended_pairs(length) for length in LENGTHS)


@pytest.mark.parametrize("tuning", ["full", "frozen_moe", "router_only"])
def test_a_step_takes_the_operations_that_are_counted(tuning: Tuning) -> None:
    layers = TINY.num_layers
    passed = (layers + 2 * (layers - (tuning == "router_only"))) / (3 * layers)
    expected = counted(tuning) - passed * MASKED
    assert operations().training(TrainedParts.of(tuning)) == expected
    for other in {"full", "frozen_moe", "router_only"} - {tuning}:
        assert operations().training(TrainedParts.of(other)) != expected  # type: ignore[arg-type]


def test_recomputation_is_left_out() -> None:
    one = operations()
    again = one.forward - one.head + MASKED / 3
    assert one.training(TrainedParts()) + MASKED + again == counted("full", activation_checkpointing=True)


def test_dropped_copies_cost_nothing() -> None:
    one = operations()
    copies = TINY.num_layers * TINY.top_k * sum(LENGTHS)
    sizes = {"tokens": 13, "attended": 15 + 1 + 28, "trained": 4}
    assert Operations.of(TINY, **sizes, copies=copies) == one
    fewer = Operations.of(TINY, **sizes, copies=copies - 1)
    assert one.experts - fewer.experts == 2 * 3 * TINY.hidden_size * TINY.expert_intermediate_size
    assert one.forward - fewer.forward == one.experts - fewer.experts
