"""Causal self-attention within each document of a packed batch, with grouped key-value heads and rotary positions.

A batch is a flat run of tokens: documents lie one after another and never see each other, which only the document
lengths decide (position numbers that restart do not stop attention).

Two ways to the same result. `varlen_attention` leaves all documents to one kernel: the way on GPUs.
`document_attention` calls scaled dot-product attention for each document: the way on CPUs, which lack that kernel. A
block mask over the whole row would cost O(T^2) instead of O(sum of L^2).

Shapes: T tokens of all documents, S keys (the T tokens themselves, or all that a cache holds), L tokens and R keys of
one document, P tokens cached before, N documents, B = N + 1 borders, D hidden, H heads, G key-value heads, Q = H / G
heads of a group, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.config import MoEConfig


class Spans:
    """Rows of each document in a flat tensor, as the host and as a kernel wants them.

    Args:
        lengths: rows of each document; one begins where the last ends.
        device: of the tensor.

    Attributes:
        longest: the most rows of a document.
        borders_B: where each document begins, then where the last one ends; int32.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device | str) -> None:
        self._lengths, self.longest = lengths, max(lengths)
        self.borders_B = torch.tensor([*accumulate(lengths, initial=0)], dtype=torch.int32, device=device)

    def split(self, x_SGK: Tensor) -> tuple[Tensor, ...]:
        """Each document's rows."""
        parts: tuple[Tensor, ...] = x_SGK.split(self._lengths)
        return parts


class Documents:
    """Where the documents of a flat batch begin and end; made once a batch, for all layers.

    Args:
        lengths: tokens of each document; they sum to T.
        positions_T: position of each token within its document.
        keys: of each document in a cache, those of this batch included; None without a cache.

    Attributes:
        positions_T: as given.
        queries: each document's rows among the T tokens.
        keys: each document's rows among the S keys.
    """

    def __init__(self, lengths: tuple[int, ...], positions_T: Tensor, keys: Spans | None = None) -> None:
        self.positions_T = positions_T
        self.queries = Spans(lengths, positions_T.device)
        self.keys = keys or self.queries

    @classmethod
    def from_lengths(cls, lengths: list[int] | tuple[int, ...], device: torch.device | str = "cpu") -> Documents:
        """Positions restart at 0 in each document."""
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return cls(tuple(lengths), positions)


def varlen_attention(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, documents: Documents) -> Tensor:
    """All documents in one kernel, for 16-bit numbers on CUDA. Never waits for the host.

    Args:
        q_THK: queries.
        k_SGK: keys.
        v_SGK: values.
        documents: which rows belong together. A document's last query sees all of its keys, the one before it all but
            the last, and so on.

    Returns:
        [T, H, K].
    """
    # loads the compiler too, 1 s that processes on CPUs do without
    from torch.nn.attention.varlen import varlen_attn

    queries, keys = documents.queries, documents.keys
    heads_THK = varlen_attn(
        q_THK,
        k_SGK,
        v_SGK,
        queries.borders_B,
        keys.borders_B,
        queries.longest,
        keys.longest,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    assert isinstance(heads_THK, Tensor), "more was not asked for"
    return heads_THK


def document_attention(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, documents: Documents) -> Tensor:
    """One document after another, for any device and dtype; shapes as `varlen_attention`.

    Raises:
        ValueError: a document has fewer queries than keys, yet more than one.
    """
    queries, keys = documents.queries, documents.keys
    parts = zip(queries.split(q_THK), keys.split(k_SGK), keys.split(v_SGK), strict=True)
    return torch.cat([_one_document(*part) for part in parts])


def _one_document(q_LHK: Tensor, k_RGK: Tensor, v_RGK: Tensor) -> Tensor:
    q_1HLK, k_1GRK, v_1GRK = (x.transpose(0, 1)[None] for x in (q_LHK, k_RGK, v_RGK))
    if len(q_LHK) == 1:
        # a group's heads as queries of one head: at Arctic's width 1.4 times as fast as `enable_gqa`, 10 times in bf16
        q_1GQK = q_1HLK.view(1, k_RGK.shape[1], -1, q_LHK.shape[2])
        return F.scaled_dot_product_attention(q_1GQK, k_1GRK, v_1GRK).reshape(q_LHK.shape)
    if len(q_LHK) != len(k_RGK):
        raise ValueError(f"{len(q_LHK)} queries of a document with {len(k_RGK)} keys: must be one or all")
    # `enable_gqa` reads keys and values where they lie, instead of a copy for each head; the bits are the same
    out_1HLK = F.scaled_dot_product_attention(q_1HLK, k_1GRK, v_1GRK, is_causal=True, enable_gqa=True)
    return out_1HLK[0].transpose(0, 1)


def _has_varlen_kernel(q_THK: Tensor) -> bool:
    """Whether `varlen_attention` takes this device, dtype and head width."""
    return q_THK.is_cuda and q_THK.element_size() == 2 and q_THK.shape[-1] in range(8, 257, 8)


@dataclass
class LayerCache:
    """Keys and values of the tokens generated so far, of one document in one layer; None before the first."""

    k_PGK: Tensor | None = None
    v_PGK: Tensor | None = None

    def append(self, k_TGK: Tensor, v_TGK: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens; returns keys and values of all."""
        if self.k_PGK is not None and self.v_PGK is not None:
            k_TGK, v_TGK = torch.cat([self.k_PGK, k_TGK]), torch.cat([self.v_PGK, v_TGK])
        self.k_PGK, self.v_PGK = k_TGK, v_TGK
        return k_TGK, v_TGK

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return 0 if self.k_PGK is None else len(self.k_PGK)


def rotary_table(config: MoEConfig, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [T, 1, K] each, computed in fp32 and cast as the published code does."""
    exponents = torch.arange(0, config.head_dim, 2, device=positions_T.device, dtype=torch.float32) / config.head_dim
    angles = positions_T.float()[:, None] / config.rope_theta**exponents
    angles = torch.cat([angles, angles], -1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_THK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Llama."""
    first, second = x_THK.chunk(2, -1)
    return x_THK * cos_T1K + torch.cat([-second, first], -1) * sin_T1K


class Attention(nn.Module):
    """Grouped-query attention without biases."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x_TD: Tensor, documents: Documents, rotary: tuple[Tensor, Tensor], cache: LayerCache | None = None
    ) -> Tensor:
        """Attend within each document.

        Args:
            x_TD: normalised hidden states.
            documents: their borders.
            rotary: `rotary_table` of the same positions.
            cache: for generation; then `documents.keys` counts what it holds.

        Returns:
            [T, D].
        """
        q_THK = rotate(self.q_proj(x_TD).unflatten(-1, (self.num_heads, -1)), *rotary)
        k_TGK = rotate(self.k_proj(x_TD).unflatten(-1, (self.num_kv_heads, -1)), *rotary)
        v_TGK = self.v_proj(x_TD).unflatten(-1, (self.num_kv_heads, -1))
        if cache is not None:
            k_TGK, v_TGK = cache.append(k_TGK, v_TGK)
        attend = varlen_attention if _has_varlen_kernel(q_THK) else document_attention
        out_TD: Tensor = self.o_proj(attend(q_THK, k_TGK, v_TGK, documents).flatten(1))
        return out_TD
