"""Causal self-attention within each document of a packed batch, with grouped key-value heads and rotary positions.

A batch is a flat run of tokens: documents lie one after another and never see each other, which only the document
lengths decide (position numbers that restart do not stop attention). On CPU each document is one call of scaled
dot-product attention; a block mask over the whole row would cost O(T^2) instead of O(sum of L^2).

Shapes: T tokens of all documents, L tokens of one document, P tokens cached before, D hidden, H heads, G key-value
heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.config import MoEConfig


@dataclass(frozen=True)
class Documents:
    """Where the documents of a flat batch begin and end.

    Attributes:
        lengths: tokens of each document; they sum to T.
        positions_T: position of each token within its document.
    """

    lengths: tuple[int, ...]
    positions_T: Tensor

    @classmethod
    def from_lengths(cls, lengths: list[int] | tuple[int, ...], device: torch.device | str = "cpu") -> Documents:
        """Positions restart at 0 in each document."""
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return cls(tuple(lengths), positions)


@dataclass
class LayerCache:
    """Keys and values of the tokens generated so far, of one document in one layer; None before the first."""

    k_GPK: Tensor | None = None
    v_GPK: Tensor | None = None

    def append(self, k_GLK: Tensor, v_GLK: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens; returns keys and values of all."""
        if self.k_GPK is not None and self.v_GPK is not None:
            k_GLK, v_GLK = torch.cat([self.k_GPK, k_GLK], 1), torch.cat([self.v_GPK, v_GLK], 1)
        self.k_GPK, self.v_GPK = k_GLK, v_GLK
        return k_GLK, v_GLK

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return 0 if self.k_GPK is None else self.k_GPK.shape[1]


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
            cache: for generation; then the batch is one document, continuing what the cache holds.

        Returns:
            [T, D].
        """
        q_THK = rotate(self.q_proj(x_TD).unflatten(-1, (self.num_heads, -1)), *rotary)
        k_TGK = rotate(self.k_proj(x_TD).unflatten(-1, (self.num_kv_heads, -1)), *rotary)
        v_TGK = self.v_proj(x_TD).unflatten(-1, (self.num_kv_heads, -1))
        q_HTK, k_GTK, v_GTK = q_THK.transpose(0, 1), k_TGK.transpose(0, 1), v_TGK.transpose(0, 1)
        if cache is not None:
            return self._project(self._attend(q_HTK, *cache.append(k_GTK, v_GTK)))
        heads = [
            self._attend(q_HLK, k_GLK, v_GLK)
            for q_HLK, k_GLK, v_GLK in zip(*(x.split(documents.lengths, 1) for x in (q_HTK, k_GTK, v_GTK)), strict=True)
        ]
        return self._project(torch.cat(heads, 1))

    def _attend(self, q_HLK: Tensor, k_GLK: Tensor, v_GLK: Tensor) -> Tensor:
        groups = self.num_heads // self.num_kv_heads
        k_HLK, v_HLK = k_GLK.repeat_interleave(groups, 0), v_GLK.repeat_interleave(groups, 0)
        num_new, num_all = q_HLK.shape[1], k_HLK.shape[1]
        if num_new not in (1, num_all):
            raise ValueError(f"a filled cache takes one token at a time, not {num_new}")
        causal = num_new > 1
        return F.scaled_dot_product_attention(q_HLK[None], k_HLK[None], v_HLK[None], is_causal=causal)[0]

    def _project(self, heads_HTK: Tensor) -> Tensor:
        out: Tensor = self.o_proj(heads_HTK.transpose(0, 1).flatten(1))
        return out
