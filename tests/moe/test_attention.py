"""Both ways to attend within documents, against the obvious formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import moe.attention
from moe.attention import Documents, Spans, document_attention, varlen_attention
from moe.model import HybridModel
from tests.moe.test_parity import RELATIVE_TOLERANCE, logits

NUM_HEADS, NUM_KV_HEADS, WIDTH = 6, 2, 16
PACKED = ((7, 1, 12), (7, 1, 12))
"""Queries and keys of each document."""
CONTINUED = ((1, 1, 1), (7, 1, 12))

# A score sums 16 products of a query and a key, rounding by at most 17 x 2^-24 of the sum of their sizes, which here is
# below 8 once divided by sqrt(16). A weight is off by twice that, and by the roundings of its exponential and of the
# sums over 12 keys; an output is a weighted mean of values: (2 x 17 x 8 + 32) x 2^-24 of the largest value.
TOLERANCE = 304 * 2**-24


def made(
    lengths: tuple[tuple[int, ...], tuple[int, ...]], device: str = "cpu"
) -> tuple[Documents, tuple[Tensor, Tensor, Tensor]]:
    """Documents, and random queries, keys and values."""
    num_new, num_all = lengths
    positions_T = torch.cat([torch.arange(n - new, n) for new, n in zip(num_new, num_all, strict=True)]).to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(num_new), NUM_HEADS), (sum(num_all), NUM_KV_HEADS), (sum(num_all), NUM_KV_HEADS))
    q_THK, k_SGK, v_SGK = (torch.randn(*shape, WIDTH, generator=generator).to(device) for shape in shapes)
    return Documents(num_new, positions_T, Spans(num_all, device)), (q_THK, k_SGK, v_SGK)


def obvious(
    q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, lengths: tuple[tuple[int, ...], tuple[int, ...]] = PACKED
) -> Tensor:
    """One query and one head at a time, the last query of a document beside its last key."""
    rows, first_query, first_key = [], 0, 0
    for num_new, num_all in zip(*lengths, strict=True):
        for new in range(num_new):
            seen = slice(first_key, first_key + num_all - num_new + new + 1)
            for head in range(NUM_HEADS):
                group = head * NUM_KV_HEADS // NUM_HEADS
                scores = k_SGK[seen, group] @ q_THK[first_query + new, head] / math.sqrt(WIDTH)
                rows.append(torch.softmax(scores, 0) @ v_SGK[seen, group])
        first_query, first_key = first_query + num_new, first_key + num_all
    return torch.stack(rows).view(q_THK.shape)


def described_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What the documentation says of `varlen_attn`."""
    assert enable_gqa
    assert window_size == (-1, 0), "nothing is hidden to the left, all that comes later to the right"
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    lengths = (tuple(cu_seq_q.diff().tolist()), tuple(cu_seq_k.diff().tolist()))
    assert (max_q, max_k) == (max(lengths[0]), max(lengths[1]))
    groups, rows = query.shape[1] // key.shape[1], []
    for q_LHK, k_RGK, v_RGK in zip(
        query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True
    ):
        k_RHK, v_RHK = k_RGK.repeat_interleave(groups, 1), v_RGK.repeat_interleave(groups, 1)
        scores_HLR = torch.einsum("lhk,rhk->hlr", q_LHK, k_RHK) / math.sqrt(query.shape[2])
        hidden_LR = torch.ones(scores_HLR.shape[1:], dtype=torch.bool).triu(1 + len(k_RGK) - len(q_LHK))
        weights_HLR = scores_HLR.masked_fill(hidden_LR, -torch.inf).softmax(-1)
        rows.append(torch.einsum("hlr,rhk->lhk", weights_HLR, v_RHK))
    return torch.cat(rows)


def error(actual_THK: Tensor, inputs: tuple[Tensor, ...], lengths: Any) -> float:
    """Relative to the largest value."""
    exact_THK = obvious(*(x.detach().cpu().double() for x in inputs), lengths)
    return float((actual_THK.detach().cpu() - exact_THK).abs().max() / inputs[2].abs().max())


@pytest.mark.parametrize("lengths", [PACKED, CONTINUED])
def test_attention_per_document_is_the_obvious_formula(lengths: Any) -> None:
    documents, inputs = made(lengths)
    assert error(document_attention(*inputs, documents), inputs, lengths) < TOLERANCE
    assert error(document_attention(*inputs[:2], inputs[2].roll(1, 0), documents), inputs, lengths) > 1000 * TOLERANCE


@pytest.mark.parametrize("lengths", [PACKED, CONTINUED])
def test_the_kernel_is_asked_for_the_obvious_formula(lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", described_kernel)
    documents, inputs = made(lengths)
    assert error(varlen_attention(*inputs, documents), inputs, lengths) < TOLERANCE


def test_a_model_computes_the_same_with_the_kernel(model: HybridModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected_TV = logits(model).detach()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", described_kernel)
    monkeypatch.setattr(moe.attention, "_has_varlen_kernel", lambda q_THK: True)
    monkeypatch.setattr(moe.attention, "document_attention", None)
    # each is as far from the oracle as the parity test allows
    tolerance = 2 * RELATIVE_TOLERANCE * float(expected_TV.abs().max())
    torch.testing.assert_close(logits(model).detach(), expected_TV, rtol=0, atol=tolerance)


def test_several_new_tokens_behind_cached_ones_are_refused() -> None:
    """They would see too few keys: the mask that is meant here begins at the first one."""
    documents, inputs = made(((7, 1, 5), (7, 1, 12)))
    with pytest.raises(ValueError, match="5 queries of a document with 12 keys"):
        document_attention(*inputs, documents)


# The kernel rounds the weights to bf16 before they weigh the values, and the result: each by 2^-8 of the largest value.
BF16_TOLERANCE = 2 * 2**-8 + TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [PACKED, CONTINUED])
def test_the_kernel_computes_the_obvious_formula(lengths: Any) -> None:
    documents, inputs = made(lengths, "cuda")
    inputs = tuple(x.bfloat16() for x in inputs)
    assert moe.attention._has_varlen_kernel(inputs[0])
    assert error(varlen_attention(*inputs, documents), inputs, lengths) < BF16_TOLERANCE


@pytest.mark.gpu
def test_gradients_of_the_kernel_are_those_of_attention_per_document() -> None:
    documents, inputs = made(PACKED, "cuda")
    grad_THK = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to("cuda", torch.bfloat16)

    def gradients(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in inputs]
        attend(*leaves, documents).backward(grad_THK.to(dtype))
        return [x.grad.double() for x in leaves]  # type: ignore[union-attr]

    exact = gradients(document_attention, torch.float64)
    per_document = gradients(document_attention, torch.bfloat16)
    for name, mine, other, true in zip(
        "qkv", gradients(varlen_attention, torch.bfloat16), per_document, exact, strict=True
    ):
        # the same roundings in another order: no worse than twice the other's
        assert (mine - true).abs().max() <= 2 * (other - true).abs().max(), name
