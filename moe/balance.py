"""The load-balancing loss, and what is watched beside it.

Normalised GShard loss over the S tokens of one packed row: `(E / S) * sum_e c_e * m_e`, with c_e the tokens whose FIRST
choice is e and m_e the mean gate probability of e; 1.0 under uniform routing. The trainer multiplies by k.

The unit is the packed row, as in the recipe, where a device holds one row. A batch's loss is the mean of its rows
weighted by their tokens: c_e * m_e is not linear, so a loss over whatever a process happens to hold would change with
the number of processes and with gradient accumulation; this one does not.

On request the unit is the rows of a forward pass on all processes of a group. Only the counts are added up over the
group, for c_e is a constant to the gradient, and the loss is linear in the probabilities: a process that multiplies its
own probabilities by the counts of all has its share of the loss and of its gradient, and the shares add up.

Shapes: T tokens, S tokens of a unit, E experts, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moe.router import Routing, count_choices


@dataclass(frozen=True)
class Balancing:
    """What keeps tokens from crowding into few experts while a model is trained; in evaluation it changes nothing.

    Attributes:
        capacity_factor: of `moe.capacity`; None drops nothing.
        loss_group: processes whose rows together are the unit of the loss; None makes each row one.
    """

    capacity_factor: float | None = None
    loss_group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class LayerBalance:
    """How evenly one layer used its experts, on the rows of one forward pass.

    Attributes:
        loss_sum: scalar with gradient; sum over rows of tokens x loss, or this process's share of it for the rows of a
            group. Divide by the tokens of the global batch.
        tokens_per_expert_E: copies meant for each expert, all K choices counted, before any drop, int64.
        dropped: scalar, copies that no expert takes, int64.
        entropy_sum: scalar, nats; sum over tokens of the entropy of the gate's distribution, detached.
    """

    loss_sum: Tensor
    tokens_per_expert_E: Tensor
    dropped: Tensor
    entropy_sum: Tensor


def layer_balance(
    routing: Routing, row_lengths: tuple[int, ...], group: dist.ProcessGroup | None = None
) -> LayerBalance:
    """Measure one layer.

    Args:
        routing: of T tokens.
        row_lengths: tokens of each packed row, padding excluded; further tokens are left out.
        group: processes whose rows together are the unit of the loss, all of which must call; None makes each row one.
    """
    num_real, num_experts = sum(row_lengths), routing.probabilities_TE.shape[1]
    probabilities_TE, experts_TK = routing.probabilities_TE[:num_real], routing.experts_TK[:num_real]
    unit_lengths = row_lengths if group is None else (num_real,)
    units = zip(probabilities_TE.split(unit_lengths), experts_TK[:, 0].split(unit_lengths), strict=True)
    loss_sum = torch.stack([_share_of_loss(p_SE, first_S, group) for p_SE, first_S in units]).sum()
    with torch.no_grad():
        entropy_sum = torch.special.entr(probabilities_TE).sum()
    copies_E = count_choices(experts_TK.flatten(), num_experts)
    dropped = copies_E.new_zeros(()) if routing.dropped_TK is None else routing.dropped_TK[:num_real].sum()
    return LayerBalance(loss_sum, copies_E, dropped, entropy_sum)


def _share_of_loss(p_SE: Tensor, first_S: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Tokens x loss of one unit, as far as this process's tokens contribute to the means of probabilities."""
    num_experts = p_SE.shape[1]
    counts_E = count_choices(first_S, num_experts)
    if group is not None:
        dist.all_reduce(counts_E, group=group)
    num_tokens = counts_E.sum().clamp(min=1)
    # tokens x (E / S) x c x (sum of p / S), with tokens = S
    return num_experts / num_tokens * (counts_E * p_SE.sum(0)).sum()
