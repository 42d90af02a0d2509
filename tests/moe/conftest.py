from __future__ import annotations

import pytest
import torch

from moe.balance import Balancing
from moe.config import MoEConfig
from moe.dispatch import ExpertParallel
from moe.hf import checkpoint_slices
from moe.init import initialize
from moe.model import HybridModel

TINY = MoEConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    expert_intermediate_size=12,
    num_experts=4,
)


def tiny_model(
    parallel: ExpertParallel | None = None,
    balancing: Balancing | None = None,
    *,
    activation_checkpointing: bool = False,
    config: MoEConfig = TINY,
) -> HybridModel:
    """Weights ten times the usual, so that every part of the layer matters to the logits."""
    model = HybridModel(config, parallel, balancing, activation_checkpointing=activation_checkpointing)
    initialize(model, seed=0)
    with torch.no_grad():
        for key, tensor in checkpoint_slices(model):
            if tensor.ndim > 1:
                tensor.mul_(10)
            else:
                generator = torch.Generator().manual_seed(len(key))
                tensor.add_(torch.empty_like(tensor).uniform_(-0.5, 0.5, generator=generator))
    return model


@pytest.fixture
def model() -> HybridModel:
    return tiny_model()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
