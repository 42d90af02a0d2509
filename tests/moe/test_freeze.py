"""What each mode of tuning trains, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moe.attention import Documents
from moe.config import Tuning
from moe.freeze import freeze
from moe.model import HybridModel, PackedBatch

TRAINED: dict[Tuning, Callable[[str], bool]] = {
    "full": lambda name: True,
    "frozen_moe": lambda name: ".block_sparse_moe." not in name,
    "router_only": lambda name: ".router." in name or ".gate." in name,
}
"""Whether a mode trains a parameter, by its name here or in a published checkpoint."""


@pytest.mark.parametrize("tuning", TRAINED)
def test_what_is_trained_and_nothing_else_has_a_gradient(tuning: Tuning, model: HybridModel) -> None:
    freeze(model, tuning)
    hidden_TD, _ = model(PackedBatch(torch.arange(9), Documents.from_lengths([9]), (9,)))
    model.lm_head(hidden_TD).square().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert set(gradients) == {name for name, _ in model.named_parameters() if TRAINED[tuning](name)}
    assert model.config.num_trained_params(tuning) == sum(gradient.numel() for gradient in gradients.values())


def test_a_routers_gradient_is_the_same_if_it_alone_is_trained(model: HybridModel) -> None:
    """What is left out is what no router needs: the graph below the first, and all other weights' gradients."""
    batch = PackedBatch(torch.arange(9), Documents.from_lengths([9]), (9,))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        model.lm_head(model(batch)[0]).square().sum().backward()
        return {name: w.grad for name, w in model.named_parameters() if w.grad is not None and ".router." in name}

    of_all = gradients()
    freeze(model, "router_only")
    alone = gradients()
    assert alone.keys() == of_all.keys()
    assert all(torch.equal(gradient, of_all[name]) and gradient.any() for name, gradient in alone.items())
