"""The load-balancing loss, and what is watched beside it.

Normalised GShard loss over the S tokens of one packed row: `(E / S) * sum_e c_e * m_e`, with c_e the tokens whose FIRST
choice is e and m_e the mean gate probability of e; 1.0 under uniform routing. The trainer multiplies by k.

The unit is the packed row, as in the recipe, where a device holds one row. A batch's loss is the mean of its rows
weighted by their tokens: c_e * m_e is not linear, so a loss over whatever a process happens to hold would change with
the number of processes and with gradient accumulation; this one does not.

Shapes: T tokens, S tokens of a row, E experts, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe.router import Routing, count_choices


@dataclass(frozen=True)
class Balancing:
    """What keeps tokens from crowding into few experts while a model is trained; in evaluation it changes nothing.

    Attributes:
        capacity_factor: of `moe.capacity`; None drops nothing.
    """

    capacity_factor: float | None = None


@dataclass(frozen=True)
class LayerBalance:
    """How evenly one layer used its experts, on the rows of one forward pass.

    Attributes:
        loss_sum: scalar with gradient; sum over rows of tokens x loss. Divide by the tokens of the global batch.
        tokens_per_expert_E: copies meant for each expert, all K choices counted, before any drop, int64.
        dropped: scalar, copies that no expert takes, int64.
        entropy_sum: scalar, nats; sum over tokens of the entropy of the gate's distribution, detached.
    """

    loss_sum: Tensor
    tokens_per_expert_E: Tensor
    dropped: Tensor
    entropy_sum: Tensor


def layer_balance(routing: Routing, row_lengths: tuple[int, ...]) -> LayerBalance:
    """Measure one layer.

    Args:
        routing: of T tokens, padding excluded.
        row_lengths: tokens of each packed row; they sum to T.
    """
    probabilities_TE, num_experts = routing.probabilities_TE, routing.probabilities_TE.shape[1]
    rows = zip(probabilities_TE.split(row_lengths), routing.experts_TK[:, 0].split(row_lengths), strict=True)
    # tokens x (E / S) x c x (sum of p / S), with tokens = S
    losses = [
        num_experts / len(first_S) * (count_choices(first_S, num_experts) * p_SE.sum(0)).sum() for p_SE, first_S in rows
    ]
    with torch.no_grad():
        entropy_sum = torch.special.entr(probabilities_TE).sum()
    copies_E = count_choices(routing.experts_TK.flatten(), num_experts)
    dropped = copies_E.new_zeros(()) if routing.dropped_TK is None else routing.dropped_TK.sum()
    return LayerBalance(torch.stack(losses).sum(), copies_E, dropped, entropy_sum)
