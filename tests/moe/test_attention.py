"""Both ways to attend within documents, against the obvious formula."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import moe.attention
from moe.attention import Documents, Spans, document_attention, varlen_attention
from moe.model import HybridModel
from tests.moe.test_parity import RELATIVE_TOLERANCE, logits

NUM_HEADS, NUM_KV_HEADS, WIDTH = 6, 2, 16


class Layout(NamedTuple):
    """Queries and keys of each document, and the rows that a document's keys have room for."""

    num_new: tuple[int, ...]
    num_all: tuple[int, ...]
    slot_size: int | None = None


PACKED = Layout((7, 1, 12), (7, 1, 12))
LAYOUTS = [PACKED, Layout((7, 1, 12), (7, 1, 12), 14), Layout((1, 1, 1), (7, 1, 12), 14)]

# A score sums 16 products of a query and a key, rounding by at most 17 x 2^-24 of the sum of their sizes, which here is
# below 8 once divided by sqrt(16). A weight is off by twice that, and by the roundings of its exponential and of the
# sums over 12 keys; an output is a weighted mean of values: (2 x 17 x 8 + 32) x 2^-24 of the largest value.
TOLERANCE = 304 * 2**-24


def made(layout: Layout, device: str = "cpu") -> tuple[Documents, tuple[Tensor, Tensor, Tensor]]:
    """Documents, and random queries, keys and values; where no key belongs there is NaN."""
    generator = torch.Generator().manual_seed(0)

    def rows(lengths: tuple[int, ...], num_heads: int, slot_size: int | None) -> Tensor:
        parts = [torch.randn(length, num_heads, WIDTH, generator=generator) for length in lengths]
        if slot_size is not None:
            parts = [F.pad(part, (0, 0, 0, 0, 0, slot_size - len(part)), value=torch.nan) for part in parts]
        return torch.cat(parts).to(device)

    num_new, num_all, slot_size = layout
    inputs = (rows(num_new, NUM_HEADS, None), *(rows(num_all, NUM_KV_HEADS, slot_size) for _ in "kv"))
    positions = [position for new, n in zip(num_new, num_all, strict=True) for position in range(n - new, n)]
    return Documents(num_new, torch.tensor(positions, device=device), Spans(num_all, device, slot_size)), inputs


def obvious(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, layout: Layout) -> Tensor:
    """One query and one head at a time, the last query of a document beside its last key."""
    rows, query, first_key = [], 0, 0
    for num_new, num_all in zip(layout.num_new, layout.num_all, strict=True):
        for num_seen in range(num_all - num_new + 1, num_all + 1):
            seen = slice(first_key, first_key + num_seen)
            for head in range(NUM_HEADS):
                group = head * NUM_KV_HEADS // NUM_HEADS
                scores = k_SGK[seen, group] @ q_THK[query, head] / math.sqrt(WIDTH)
                rows.append(torch.softmax(scores, 0) @ v_SGK[seen, group])
            query += 1
        first_key += layout.slot_size or num_all
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
    seqused_k: Tensor | None,
) -> Tensor:
    """What the documentation says of `varlen_attn`."""
    assert enable_gqa
    assert window_size == (-1, 0), "nothing is hidden to the left, all that comes later to the right"
    used = cu_seq_k.diff() if seqused_k is None else seqused_k
    assert cu_seq_q.dtype == cu_seq_k.dtype == used.dtype == torch.int32
    assert (max_q, max_k) == (max(cu_seq_q.diff()), max(used))
    assert key.shape[0] == value.shape[0] == cu_seq_k[-1]
    rows = []
    for index, length in enumerate(used.tolist()):
        q_LHK, first_key = query[cu_seq_q[index] : cu_seq_q[index + 1]], int(cu_seq_k[index])
        k_RHK, v_RHK = (
            x[first_key : first_key + length].repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value)
        )
        scores_HLR = torch.einsum("lhk,rhk->hlr", q_LHK, k_RHK) / math.sqrt(query.shape[2])
        hidden_LR = torch.ones(scores_HLR.shape[1:], dtype=torch.bool).triu(1 + length - len(q_LHK))
        weights_HLR = scores_HLR.masked_fill(hidden_LR, -torch.inf).softmax(-1)
        rows.append(torch.einsum("hlr,rhk->lhk", weights_HLR, v_RHK))
    return torch.cat(rows)


def error(actual_THK: Tensor, inputs: tuple[Tensor, ...], layout: Layout) -> float:
    """Relative to the largest value."""
    exact_THK = obvious(*(x.cpu().double() for x in inputs), layout)
    return float((actual_THK.cpu() - exact_THK).abs().max() / inputs[2].nan_to_num().abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_per_document_is_the_obvious_formula(layout: Layout) -> None:
    documents, inputs = made(layout)
    assert error(document_attention(*inputs, documents), inputs, layout) < TOLERANCE
    assert error(document_attention(*inputs[:2], inputs[2].flip(1), documents), inputs, layout) > 1000 * TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernel_is_asked_for_the_obvious_formula(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", described_kernel)
    documents, inputs = made(layout)
    assert error(varlen_attention(*inputs, documents), inputs, layout) < TOLERANCE


def test_a_model_computes_the_same_with_the_kernel(model: HybridModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected_TV = logits(model).detach()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", described_kernel)
    monkeypatch.setattr(moe.attention, "_has_varlen_kernel", lambda q_THK: True)
    monkeypatch.setattr(moe.attention, "document_attention", None)
    # each is as far from the oracle as the parity test allows
    tolerance = 2 * RELATIVE_TOLERANCE * float(expected_TV.abs().max())
    torch.testing.assert_close(logits(model).detach(), expected_TV, rtol=0, atol=tolerance)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("width", "fits"), [(8, True), (128, True), (256, True), (4, False), (12, False), (264, False)]
)
def test_the_kernel_is_taken_where_it_can_be(device: str, dtype: torch.dtype, width: int, fits: bool) -> None:
    """Without a GPU: of tensors that have a device, and no numbers."""
    with FakeTensorMode():
        q_THK = torch.empty(3, NUM_HEADS, width, dtype=dtype, device=device)
        assert moe.attention._has_varlen_kernel(q_THK) == (device == "cuda" and dtype != torch.float32 and fits)


def test_several_new_tokens_behind_cached_ones_are_refused() -> None:
    """They would see too few keys: the mask that is meant here begins at the first one."""
    documents, inputs = made(Layout((7, 1, 5), (7, 1, 12)))
    with pytest.raises(ValueError, match="5 queries of a document with 12 keys"):
        document_attention(*inputs, documents)


# The kernel rounds the weights to bf16 before they weigh the values, and the result: each by 2^-8 of the largest value.
BF16_TOLERANCE = 2 * 2**-8 + TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernel_computes_the_obvious_formula(layout: Layout) -> None:
    documents, inputs = made(layout, "cuda")
    inputs = tuple(x.bfloat16() for x in inputs)
    assert moe.attention._has_varlen_kernel(inputs[0])
    assert error(varlen_attention(*inputs, documents), inputs, layout) < BF16_TOLERANCE


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
