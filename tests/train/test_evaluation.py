"""Evaluation measures the model, not the limits that it is trained under."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from moe.balance import Balancing
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.evaluate.held_out import measure_held_out
from ray_jobs.evaluate.samples import answer
from ray_jobs.train.engine import TrainingStep
from tests.moe.conftest import TINY, tiny_model

DROPPING = Balancing(capacity_factor=0.1)


def test_held_out_loss_is_measured_without_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, 30).astype(np.int32)
    rows = [PackedRow(tokens, np.arange(30) > 5, np.array([30], dtype=np.int32), ("c",))]
    free, limited = (TrainingStep(tiny_model(balancing=balancing), 0.01, 1) for balancing in (None, DROPPING))
    (loss, routing), (free_loss, free_routing) = (measure_held_out(step, rows, ["c"]) for step in (limited, free))
    assert loss == free_loss
    assert routing.copies_CLE.equal(free_routing.copies_CLE)
    assert limited.training
    assert limited.model.layers[0].block_sparse_moe.training, "training goes on as before"
    limited.eval()
    measure_held_out(limited, rows, ["c"])
    assert not limited.training


def test_answers_are_generated_without_drops() -> None:
    tokenizer = SimpleNamespace(
        apply_chat_template=lambda _messages, **_options: torch.arange(30).tolist(),
        decode=lambda tokens, **_options: str(tokens),
        eos_token_id=-1,
    )
    free, limited = tiny_model(), tiny_model(balancing=DROPPING)
    assert answer(limited, tokenizer, ["?"], 8) == answer(free, tokenizer, ["?"], 8)  # type: ignore[arg-type]
    assert limited.training
