"""Choosing the next token: the likeliest, or one at random from what temperature, top-k and top-p leave.

The order is the usual one: divide by the temperature, keep the k likeliest, keep the likeliest that together reach p.

Shapes: N sequences, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: divides the logits; 0 chooses the likeliest token.
        top_k: only so many of the likeliest tokens; None for all.
        top_p: only the likeliest tokens, up to the one with which their probabilities reach this sum; at least one.

    Raises:
        ValueError: one of them is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, is {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, is {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], is {self.top_p}")


GREEDY = Sampling(temperature=0.0)


def choose(logits_NV: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """One token for each sequence.

    Args:
        logits_NV: of any dtype.
        sampling: how to choose.
        generator: on any device, gives one number a sequence unless the choice is greedy; None for PyTorch's own.

    Returns:
        Token ids, [N], int64.

    Raises:
        ValueError: logits to draw from hold NaN, or nothing but minus infinity.
    """
    if sampling.temperature == 0:
        return logits_NV.argmax(-1)
    sorted_NV, tokens_NV = torch.sort(logits_NV.double(), descending=True, stable=True)
    # the largest becomes 0, so that no temperature is too low
    scaled_NV = (sorted_NV - sorted_NV[:, :1]) / sampling.temperature
    if sampling.top_k is not None:
        scaled_NV[:, sampling.top_k :] = -math.inf
    probabilities_NV = scaled_NV.softmax(-1)
    before_NV = probabilities_NV.cumsum(-1) - probabilities_NV
    ends_NV = probabilities_NV.masked_fill(before_NV >= sampling.top_p, 0).cumsum(-1)
    if ends_NV[:, -1].isnan().any():  # else the index behind the last token would be chosen
        raise ValueError("the logits hold NaN, or leave no token a chance")
    device = "cpu" if generator is None else generator.device
    random_N1 = torch.rand(len(logits_NV), 1, dtype=torch.float64, generator=generator, device=device)
    # in (0, sum], so that the first end at or above it belongs to a token with a chance
    drawn_N1 = (1 - random_N1.to(ends_NV.device)) * ends_NV[:, -1:]
    return tokens_NV.gather(-1, torch.searchsorted(ends_NV, drawn_N1)).squeeze(-1)
