"""The fast model against the slow oracle, and mutations that the comparison must notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import moe.attention
import moe.model
from moe.attention import Documents
from moe.balance import layer_balance
from moe.hf import checkpoint_slices
from moe.model import HybridLayer, HybridModel, PackedBatch, RMSNorm
from moe.reference import reference_balance_loss, reference_logits
from moe.router import Router, Routing
from tests.moe.conftest import TINY

LENGTHS = [7, 1, 12]
TOKENS = torch.randint(0, TINY.vocab_size, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))

# Each layer chains about 10 products over at most 16 terms, each rounding by at most sqrt(16) * 2^-24 of its result;
# the oracle runs in fp64. Two layers and the head: 21 * 4 * 6e-8 = 5e-6, relative to the largest logit.
RELATIVE_TOLERANCE = 5e-6


def packed(lengths: list[int], tokens_T: Tensor) -> PackedBatch:
    return PackedBatch(tokens_T, Documents.from_lengths(lengths), (len(tokens_T),))


def logits(model: HybridModel) -> Tensor:
    hidden_TD, _ = model(packed(LENGTHS, TOKENS))
    return model.lm_head(hidden_TD)


def oracle(model: HybridModel) -> Tensor:
    weights = {key: tensor.double() for key, tensor in checkpoint_slices(model)}
    return torch.cat([reference_logits(TINY, weights, part.tolist()) for part in TOKENS.split(LENGTHS)])


@torch.no_grad()
def relative_error(model: HybridModel) -> float:
    expected = oracle(model)
    return float((logits(model).double() - expected).abs().max() / expected.abs().max())


def test_packed_logits_equal_the_oracle_on_each_document_alone(model: HybridModel) -> None:
    assert relative_error(model) < RELATIVE_TOLERANCE


def _patch_documents(patch: pytest.MonkeyPatch, build: Callable[[list[int]], Documents]) -> None:
    patch.setattr(Documents, "from_lengths", lambda lengths, device="cpu": build(lengths))


def _one_document(patch: pytest.MonkeyPatch) -> None:
    """Positions restart, attention does not stop."""
    _patch_documents(patch, lambda lengths: Documents((sum(lengths),), torch.cat([torch.arange(n) for n in lengths])))


def _positions_stretched(patch: pytest.MonkeyPatch) -> None:
    """A shift within a document would be invisible to rotary attention."""
    _patch_documents(patch, lambda lengths: Documents(tuple(lengths), 2 * torch.arange(sum(lengths))))


def _moe_reads_after_attention(patch: pytest.MonkeyPatch) -> None:
    def forward(self: HybridLayer, x_TD: Tensor, batch: PackedBatch, rotary: tuple[Tensor, Tensor], cache: None):  # type: ignore[no-untyped-def]
        a_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), batch.documents, rotary, cache)
        moe_TD, balance = self.block_sparse_moe(self.post_attention_layernorm(a_TD), batch.row_lengths)
        return a_TD + self.residual_mlp(self.residual_layernorm(a_TD)) + moe_TD, balance

    patch.setattr(HybridLayer, "forward", forward)


def _weights_not_renormalised(patch: pytest.MonkeyPatch) -> None:
    def forward(self: Router, x_TD: Tensor) -> Routing:
        probabilities_TE = torch.softmax(self.gate(x_TD).float(), -1)
        top_TK, experts_TK = probabilities_TE.topk(self.top_k, -1)
        return Routing(probabilities_TE, experts_TK, top_TK)

    patch.setattr(Router, "forward", forward)


def _copies_come_home_swapped(patch: pytest.MonkeyPatch) -> None:
    send_home = moe.model.send_home
    patch.setattr(moe.model, "send_home", lambda y_MD, dispatched: send_home(y_MD.roll(1, 0), dispatched))


@pytest.mark.parametrize(
    "mutate",
    [
        _one_document,
        _positions_stretched,
        _moe_reads_after_attention,
        _weights_not_renormalised,
        _copies_come_home_swapped,
    ],
)
def test_parity_notices(
    mutate: Callable[[pytest.MonkeyPatch], None], model: HybridModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert relative_error(model) > 100 * RELATIVE_TOLERANCE


# A weight's gradient multiplies an activation by a signal that came back, and each has its share of rounding: the
# forward pass up to the activation, the logits that the loss starts from, and a backward pass as long as the forward.
GRADIENT_TOLERANCE = 3 * RELATIVE_TOLERANCE


def gradient_errors(model: HybridModel) -> dict[str, float]:
    """Distance of each published tensor's gradient from the oracle's, relative to its largest element."""
    weights = {key: tensor.double().requires_grad_() for key, tensor in checkpoint_slices(model)}
    parts = [reference_logits(TINY, weights, part.tolist()) for part in TOKENS.split(LENGTHS)]
    torch.cat(parts).square().mean().backward()
    logits(model).square().mean().backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = dict(checkpoint_slices(model))
    assert gradients.keys() == weights.keys()
    return {
        key: float((gradients[key].double() - weight.grad).abs().max() / weight.grad.abs().max())
        for key, weight in weights.items()
        if weight.grad is not None
    }


def test_every_gradient_equals_the_oracles(model: HybridModel) -> None:
    num_keys = sum(1 for _ in checkpoint_slices(model))
    errors = gradient_errors(model)
    assert len(errors) == num_keys
    assert max(errors.values()) < GRADIENT_TOLERANCE, max(errors, key=lambda key: errors[key])


def _route(weigh: Callable[[Tensor], Tensor]) -> Callable[[Router, Tensor], Routing]:
    def forward(self: Router, x_TD: Tensor) -> Routing:
        probabilities_TE = torch.softmax(self.gate(x_TD).float(), -1)
        top_TK, experts_TK = probabilities_TE.topk(self.top_k, -1)
        return Routing(probabilities_TE, experts_TK, weigh(top_TK))

    return forward


def _weights_detached(patch: pytest.MonkeyPatch) -> None:
    """The router learns nothing from the loss, only to balance."""
    patch.setattr(Router, "forward", _route(lambda top_TK: (top_TK / top_TK.sum(-1, keepdim=True)).detach()))


def _sum_of_weights_detached(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Router, "forward", _route(lambda top_TK: top_TK / top_TK.sum(-1, keepdim=True).detach()))


def _nothing_flows_through_the_experts(patch: pytest.MonkeyPatch) -> None:
    dispatch = moe.model.dispatch
    patch.setattr(moe.model, "dispatch", lambda x_TD, *rest: dispatch(x_TD.detach(), *rest))


def _scale_of_norms_detached(patch: pytest.MonkeyPatch) -> None:
    def forward(self: RMSNorm, x_TD: Tensor) -> Tensor:
        scale_T1 = torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x_TD * scale_T1.detach())

    patch.setattr(RMSNorm, "forward", forward)


@pytest.mark.parametrize(
    "mutate",
    [_weights_detached, _sum_of_weights_detached, _nothing_flows_through_the_experts, _scale_of_norms_detached],
)
def test_gradient_parity_notices_what_the_logits_do_not_show(
    mutate: Callable[[pytest.MonkeyPatch], None], model: HybridModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert relative_error(model) < RELATIVE_TOLERANCE
    assert max(gradient_errors(model).values()) > 100 * GRADIENT_TOLERANCE


def _gradients(model: HybridModel, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    run().square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_packed_gradients_equal_the_sum_over_documents_alone(model: HybridModel) -> None:
    def alone() -> Tensor:
        parts = [model(packed([len(part)], part))[0] for part in TOKENS.split(LENGTHS)]
        return model.lm_head(torch.cat(parts))

    together = _gradients(model, lambda: logits(model))
    for name, gradient in _gradients(model, alone).items():
        # sums of 20 tokens' contributions in another order, backward twice as deep as forward
        tolerance = 20**0.5 * 2 * RELATIVE_TOLERANCE * float(gradient.abs().max())
        torch.testing.assert_close(together[name], gradient, rtol=0, atol=tolerance)


def test_balance_loss_equals_counting_per_row_and_is_one_when_uniform(model: HybridModel) -> None:
    x_TD = torch.randn(20, TINY.hidden_size, generator=torch.Generator().manual_seed(2))
    router = model.layers[0].block_sparse_moe.router
    balance = layer_balance(router(x_TD), (8, 12))
    gate = router.gate.weight
    expected = 8 * reference_balance_loss(TINY, gate, x_TD[:8]) + 12 * reference_balance_loss(TINY, gate, x_TD[8:])
    torch.testing.assert_close(balance.loss_sum, expected, rtol=1e-6, atol=0)
    whole = layer_balance(router(x_TD), (20,)).loss_sum
    assert abs((whole - expected).item()) > 1e-3, "rows and batch must differ, else this test proves nothing"

    probabilities = torch.full((4, 4), 0.25)
    uniform = Routing(probabilities, torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]]), torch.full((4, 2), 0.5))
    assert layer_balance(uniform, (4,)).loss_sum.item() / 4 == 1.0


def test_balance_loss_reaches_the_router(model: HybridModel) -> None:
    _, balances = model(packed(LENGTHS, TOKENS))
    sum(balance.loss_sum for balance in balances).backward()
    for layer in model.layers:
        assert layer.block_sparse_moe.router.gate.weight.grad.abs().max() > 0
