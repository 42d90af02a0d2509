"""What each mode of tuning trains, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moe.attention import Documents
from moe.config import Tuning
from moe.experts import Experts, grouped_swiglu
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


class GroupedProducts(TorchDispatchMode):
    """Counts them, seen below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func is torch.ops.aten._grouped_mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("tuning", "num_backward"), [("full", 4), ("frozen_moe", 2), ("router_only", 2)])
def test_frozen_experts_cost_no_grouped_products_for_their_weights(
    tuning: Tuning, num_backward: int, model: HybridModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs: two forward; backward two for what came in, and two for weights that are trained.

    Where only routers are trained, the first layer's experts have nothing below them that is.
    """
    monkeypatch.setattr(
        Experts, "forward", lambda self, x_MD, counts_E: grouped_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)
    )
    freeze(model, tuning)
    layers = model.config.num_layers
    with GroupedProducts() as products:
        hidden_TD, _ = model(PackedBatch(torch.arange(9), Documents.from_lengths([9]), (9,)))
        assert products.count == 2 * layers
        hidden_TD.square().sum().backward()
    assert products.count == 2 * layers + num_backward * (layers - (tuning == "router_only"))
