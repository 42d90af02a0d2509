"""Layers computed anew in the backward pass: the same gradients from fewer kept bytes."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import moe.model
from moe.dispatch import ExpertParallel
from moe.model import HybridModel
from moe.permutation import Permutation
from tests.moe.conftest import TINY, tiny_model
from tests.moe.kept import bytes_kept
from tests.moe.test_parity import LENGTHS, TOKENS, packed
from tests.processes import run_processes


def gradients(parallel: ExpertParallel | None, tokens_T: Tensor, *, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of a loss that reaches every weight, and how often a layer was entered."""
    model, entered = tiny_model(parallel), 0
    model._activation_checkpointing = recompute

    def count(*_: object) -> None:
        nonlocal entered
        entered += 1

    for layer in model.layers:
        layer.register_forward_pre_hook(count)
    hidden_TD, balances = model(packed(LENGTHS, tokens_T))
    loss = model.lm_head(hidden_TD).square().sum() + sum(balance.loss_sum for balance in balances)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, entered  # type: ignore[misc]


def assert_same_bits(parallel: ExpertParallel | None, tokens_T: Tensor) -> None:
    kept, entered_once = gradients(parallel, tokens_T, recompute=False)
    recomputed, entered_twice = gradients(parallel, tokens_T, recompute=True)
    assert (entered_once, entered_twice) == (TINY.num_layers, 2 * TINY.num_layers)
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


def test_gradients_are_the_same_bits() -> None:
    assert_same_bits(None, TOKENS)


def _compare_gradients(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    assert_same_bits(ExpertParallel(dist.group.WORLD), TOKENS.roll(rank))
    dist.destroy_process_group()
    # threads that outlive their group can abort the process when it ends
    assert not [name for path in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := path.read_text())]


def test_gradients_are_the_same_bits_when_two_processes_share_the_experts(tmp_path: Path) -> None:
    """One that repeated its collectives in another order would wait for ever, or get the other's rows."""
    run_processes(_compare_gradients, str(tmp_path), number=2)


def kept_bytes(num_layers: int, *, recompute: bool, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out."""
    model = HybridModel(replace(TINY, num_layers=num_layers), activation_checkpointing=recompute)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.to(dtype)
    return bytes_kept(model, lambda: model(packed(LENGTHS, TOKENS)))


def test_a_layer_keeps_its_input_only() -> None:
    input_bytes = 4 * len(TOKENS) * TINY.hidden_size
    assert kept_bytes(3, recompute=True) - kept_bytes(2, recompute=True) == input_bytes


@pytest.mark.parametrize("recompute", [True, False])
def test_nor_does_it_keep_the_order_of_copies(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which hooks of saved tensors would not see, were it kept beside them."""
    orders: list[weakref.ref[Tensor]] = []
    sorting = Permutation.sorting

    def watched(keys_N: Tensor) -> Permutation:
        order = sorting(keys_N)
        orders.extend(map(weakref.ref, (order.order_N, order.inverse_N)))
        return order

    monkeypatch.setattr(Permutation, "sorting", watched)
    model = tiny_model()
    model._activation_checkpointing = recompute
    hidden_TD, _ = model(packed(LENGTHS, TOKENS))
    assert hidden_TD.grad_fn is not None
    assert len(orders) == 2 * TINY.num_layers
    assert [order() is None for order in orders] == [recompute] * len(orders)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_it_a_layer_keeps_what_the_config_says(dtype: torch.dtype) -> None:
    layer_bytes = kept_bytes(3, recompute=False, dtype=dtype) - kept_bytes(2, recompute=False, dtype=dtype)
    order = 2 * 8 * TINY.top_k  # of the copies by expert, and back
    stated = dtype.itemsize * TINY.num_activations() + 4 * TINY.num_experts + order
    assert stated < layer_bytes / len(TOKENS) < stated + 80


@torch.no_grad()
def test_nothing_is_wrapped_when_there_is_no_backward_pass(model: HybridModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe.model, "checkpoint", None)
    model._activation_checkpointing = True
    model(packed(LENGTHS, TOKENS))
