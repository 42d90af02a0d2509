"""Causal self-attention within each document of a packed batch, with grouped key-value heads and rotary positions.

A batch is a flat run of tokens: documents lie one after another and never see each other, which only the document
lengths decide (position numbers that restart do not stop attention).

Two ways to the same result. `varlen_attention` leaves all documents to one kernel: the way on GPUs, tried on none yet.
`document_attention` calls scaled dot-product attention for each document: the way on CPUs, which lack that kernel. A
block mask over the whole row would cost O(T^2) instead of O(sum of L^2).

Shapes: T tokens of all documents, S rows of keys (the T tokens' own, or the N x C rows of a cache), L tokens and R keys
of one document, C rows of its slot, N documents, B = N + 1 borders, D hidden, H heads, G key-value heads, Q = H / G
heads of a group, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.config import MoEConfig


class Spans:
    """Rows of each document in a flat tensor, as the host and as a kernel wants them.

    Args:
        lengths: rows of each document.
        device: of the tensors.
        slot_size: rows from the start of one document to the start of the next; None where one follows the other.

    Attributes:
        longest: the most rows of a document.
        borders_B: where each document begins, then where the last one's slot ends; int32.
        lengths_N: int32; None where the borders say it.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device | str, slot_size: int | None = None) -> None:
        self._lengths, self._slot_size, self.longest = lengths, slot_size, max(lengths)
        sizes = lengths if slot_size is None else [slot_size] * len(lengths)
        self.borders_B = torch.tensor([*accumulate(sizes, initial=0)], dtype=torch.int32, device=device)
        self.lengths_N = None if slot_size is None else torch.tensor(lengths, dtype=torch.int32, device=device)

    def split(self, x_SGK: Tensor) -> list[Tensor]:
        """Each document's rows."""
        if self._slot_size is None:
            return list(x_SGK.split(self._lengths))
        return [slot[:length] for slot, length in zip(x_SGK.split(self._slot_size), self._lengths, strict=True)]


class Documents:
    """Where the documents of a flat batch begin and end; made once a batch, for all layers.

    Args:
        lengths: tokens of each document; they sum to T.
        positions_T: position of each token within its document.
        keys: each document's rows in a cache, with those of this batch; None without a cache.

    Attributes:
        lengths: as given.
        positions_T: as given.
        queries: each document's rows among the T tokens.
        keys: each document's rows among the S keys.
    """

    def __init__(self, lengths: tuple[int, ...], positions_T: Tensor, keys: Spans | None = None) -> None:
        self.lengths, self.positions_T = lengths, positions_T
        self.queries = Spans(lengths, positions_T.device)
        self.keys = keys or self.queries

    @classmethod
    def from_lengths(cls, lengths: list[int] | tuple[int, ...], device: torch.device | str = "cpu") -> Documents:
        """Positions restart at 0 in each document."""
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return cls(tuple(lengths), positions)

    @cached_property
    def index_T(self) -> Tensor:  # noqa: N802  a tensor field
        """The document of each token."""
        return torch.repeat_interleave(self.queries.borders_B.diff(), output_size=len(self.positions_T))


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
        seqused_k=keys.lengths_N,
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
    """Keys and values of the documents of a batch in one layer, each document's in a slot of its own.

    Attributes:
        k_NCGK: keys by position.
        v_NCGK: values, likewise.
    """

    k_NCGK: Tensor
    v_NCGK: Tensor

    def write(self, k_TGK: Tensor, v_TGK: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
        """Put new tokens at their positions; returns the rows of all slots, [S, G, K] each."""
        where = documents.index_T, documents.positions_T
        self.k_NCGK[where], self.v_NCGK[where] = k_TGK, v_TGK
        return self.k_NCGK.flatten(0, 1), self.v_NCGK.flatten(0, 1)

    def keep(self, slots_N: Tensor) -> None:
        """Drop all slots but these, in the order given."""
        self.k_NCGK, self.v_NCGK = self.k_NCGK[slots_N], self.v_NCGK[slots_N]


def rotary_table(config: MoEConfig, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [T, 1, K] each, computed in fp32 and cast: the published code's bits."""
    exponents = torch.arange(0, config.head_dim, 2, device=positions_T.device, dtype=torch.float32) / config.head_dim
    angles = positions_T.float()[:, None] * (1.0 / config.rope_theta**exponents)
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
            cache: for generation, with a slot for each document; `documents.keys` then tells what it holds.

        Returns:
            [T, D].
        """
        q_THK = rotate(self.q_proj(x_TD).unflatten(-1, (self.num_heads, -1)), *rotary)
        k_TGK = rotate(self.k_proj(x_TD).unflatten(-1, (self.num_kv_heads, -1)), *rotary)
        v_TGK = self.v_proj(x_TD).unflatten(-1, (self.num_kv_heads, -1))
        if cache is not None:
            k_TGK, v_TGK = cache.write(k_TGK, v_TGK, documents)
        attend = varlen_attention if _has_varlen_kernel(q_THK) else document_attention
        out_TD: Tensor = self.o_proj(attend(q_THK, k_TGK, v_TGK, documents).flatten(1))
        return out_TD
