"""The gate: which experts a token goes to, and with what weights.

As published: a linear map in the model's dtype, softmax in fp32 over ALL experts, top-k, the k weights divided by their
sum. No noise, no jitter.

Shapes: T tokens, D hidden, E experts, K experts a token, N choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe.config import MoEConfig


@dataclass(frozen=True)
class Routing:
    """A layer's decisions for T tokens.

    Attributes:
        probabilities_TE: softmax over all experts, fp32, with gradient.
        experts_TK: chosen experts, best first.
        weights_TK: their weights, summing to 1 per token, in the model's dtype; 0 for what is dropped.
        dropped_TK: true where the expert does not take the token; None when nothing is dropped.
    """

    probabilities_TE: Tensor
    experts_TK: Tensor
    weights_TK: Tensor
    dropped_TK: Tensor | None = None


class Router(nn.Module):
    """Top-k softmax gate."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route each token."""
        probabilities_TE = torch.softmax(self.gate(x_TD).float(), -1)
        top_TK, experts_TK = probabilities_TE.topk(self.top_k, -1)
        weights_TK = top_TK / top_TK.sum(-1, keepdim=True)
        return Routing(probabilities_TE, experts_TK, weights_TK.to(x_TD.dtype))


def count_choices(experts_N: Tensor, num_experts: int) -> Tensor:
    """How often each expert is chosen, [E] int64; unlike `bincount`, does not have the host wait for a GPU."""
    return experts_N.new_zeros(num_experts).scatter_add_(0, experts_N, torch.ones_like(experts_N))
