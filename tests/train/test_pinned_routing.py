"""A model repeats choices of experts, and says how far it had to be pushed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe.attention import Documents
from moe.model import HybridModel, PackedBatch
from ray_jobs.train.pinned_routing import LayerChoices, pinned_routing, recorded_routing
from tests.moe.conftest import TINY, tiny_model

LENGTH = 12
BATCH = PackedBatch(torch.arange(LENGTH) % TINY.vocab_size, Documents.from_lengths([LENGTH]), (LENGTH,))


def forward(model: HybridModel) -> tuple[Tensor, LayerChoices]:
    with recorded_routing(model) as choices:
        hidden_TD, _ = model(BATCH)
    return hidden_TD, choices


def test_own_choices_change_nothing() -> None:
    model = tiny_model()
    hidden_TD, choices = forward(model)
    with pinned_routing(model, choices) as nudges:
        again_TD, repeated = forward(model)
    assert nudges.largest == 0
    assert torch.equal(again_TD, hidden_TD)
    assert all(map(torch.equal, repeated, choices))


def test_other_choices_are_followed_and_the_push_is_told() -> None:
    model = tiny_model()
    _, choices = forward(model)
    swapped = [experts_TK.flip(1) for experts_TK in choices]
    gate = model.layers[0].block_sparse_moe.router.gate
    inputs: list[Tensor] = []
    handle = gate.register_forward_hook(lambda _module, arguments, _output: inputs.append(arguments[0]))
    with pinned_routing(model, swapped) as nudges:
        _, followed = forward(model)
    handle.remove()
    assert all(map(torch.equal, followed, swapped))
    logits_TE = gate(inputs[0])
    needed = (logits_TE.gather(1, choices[0]).diff(dim=1).abs().max() / logits_TE.abs().max()).item()
    assert nudges.largest > 0.999 * needed, "in layer 0 the second choice is raised to the first"
    _, free = forward(model)
    assert all(map(torch.equal, free, choices)), "outside the block the model is as it was"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_ties_go_either_way_without_a_push_beyond_the_margin(scale: float) -> None:
    model = tiny_model()
    for layer in model.layers:
        gate = layer.block_sparse_moe.router.gate
        gate.weight.data = scale * gate.weight.data[:1].expand(TINY.num_experts, -1).clone()
    wanted = [torch.tensor([[3, 1]]).expand(LENGTH, 2), torch.tensor([[0, 2]]).expand(LENGTH, 2)]
    with pinned_routing(model, wanted) as nudges:
        _, followed = forward(model)
    assert all(map(torch.equal, followed, wanted))
    assert nudges.largest < 1e-7


def test_activation_checkpointing_repeats_them_in_the_backward_pass() -> None:
    gradients = []
    for activation_checkpointing in (False, True):
        model = tiny_model(activation_checkpointing=activation_checkpointing)
        with recorded_routing(model) as choices:
            model(BATCH)
        assert len(choices) == TINY.num_layers
        with pinned_routing(model, [experts_TK.flip(1) for experts_TK in choices]):
            loss = model(BATCH)[0].square().sum()
            gradients.append(torch.autograd.grad(loss, model.layers[0].block_sparse_moe.router.gate.weight)[0])
    assert torch.equal(*gradients)
