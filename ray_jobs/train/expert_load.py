"""How a layer's load lies on its experts: what alerts and reports are made of.

An expert's load is its share of the layer's token copies. A token's K choices differ from one another, so no expert has
more than 1/K of them, and at least K experts have some: loads lie between even, 1/E each, and collapsed, 1/K on each of
the same K experts.

Shapes: ... anything, E experts, K experts a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def loads(copies: Tensor) -> Tensor:
    """Each expert's share of [..., E] copies, fp64."""
    copies = copies.double()
    return copies / copies.sum(-1, keepdim=True)


def max_over_mean(copies: Tensor) -> Tensor:
    """Load of the busiest expert over the mean: [..., E] to [...], 1 when even, E / K when collapsed."""
    return loads(copies).amax(-1) * copies.shape[-1]


def effective_experts(copies: Tensor) -> Tensor:
    """How many experts with an even load would have the same entropy: [..., E] to [...], from K to E."""
    entropy: Tensor = torch.special.entr(loads(copies)).sum(-1)
    return entropy.exp()


def collapse(copies: Tensor, top_k: int) -> Tensor:
    """How far the load has gone from even, 0, to collapsed, 1: [..., E] to [...].

    The greater of two, for either may come without the other. On the way from ln E to ln K, how far the entropy of the
    load has fallen: a few experts take all. On the way from K / E to 1, how far the share of the tokens has risen that
    choose the busiest expert: one expert is the same for all, while the others are as they were.

    Args:
        copies: by expert.
        top_k: K; where it is E, nothing is chosen, and nothing can collapse.
    """
    num_experts = copies.shape[-1]
    if top_k == num_experts:
        return torch.zeros(copies.shape[:-1], dtype=torch.float64)
    entropy_fallen = (num_experts / effective_experts(copies)).log() / math.log(num_experts / top_k)
    even = top_k / num_experts
    busiest_risen = (loads(copies).amax(-1) * top_k - even) / (1 - even)
    return torch.maximum(entropy_fallen, busiest_risen)
