"""A limit to the copies that an expert takes: what finds no room is dropped, and adds nothing to its token.

The rule of GShard, as in DeepSpeed's `top2gating`: an expert has room for `ceil(capacity_factor * K * S / E)` copies of
S tokens; first choices take their places before second choices, and of equal choices the earlier token's comes first.
A token's weights are divided by the sum of those kept, so a single kept copy weighs 1, however little the gate gave it.
Arctic's published configuration allows drops in training, with factor 1.

The S tokens are those of one packed row, as for the balance loss and for the same reason: what is dropped depends
neither on the number of processes nor on accumulation. Two things differ from DeepSpeed: the rule is the same for every
K, and no smallest room is set (there 4 by default) but the 1 that rounding up gives. The recipe's sizes give 64.

Shapes: T tokens, S tokens of a row, E experts, K experts a token, N = S * K copies.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from moe.router import Routing


def drop_over_capacity(routing: Routing, row_lengths: tuple[int, ...], capacity_factor: float) -> Routing:
    """Mark the copies that find no room, and weigh the others anew.

    Args:
        routing: of T tokens, nothing dropped.
        row_lengths: tokens of each packed row; further tokens are as one more.
        capacity_factor: room of an expert, as a multiple of what it gets when all get equally much.
    """
    num_experts = routing.probabilities_TE.shape[1]
    rows = routing.experts_TK.split((*row_lengths, len(routing.experts_TK) - sum(row_lengths)))
    dropped_TK = torch.cat(
        [_finds_no_room(row_SK, room(row_SK.numel(), num_experts, capacity_factor)) for row_SK in rows]
    )
    kept_TK = routing.probabilities_TE.gather(1, routing.experts_TK).masked_fill(dropped_TK, 0)
    # the smallest divisor is DeepSpeed's, for tokens whose copies were all dropped
    weights_TK = kept_TK / kept_TK.sum(-1, keepdim=True).clamp(min=torch.finfo(kept_TK.dtype).eps)
    return replace(routing, weights_TK=weights_TK.to(routing.weights_TK.dtype), dropped_TK=dropped_TK)


def room(num_copies: int, num_experts: int, capacity_factor: float) -> int:
    """Copies that an expert takes; in fractions, since 100 x 2.2 is 220.00000000000003 in binary."""
    return math.ceil(Fraction(str(capacity_factor)) * num_copies / num_experts)


def _finds_no_room(experts_SK: Tensor, room: int) -> Tensor:
    """True for the copies of a row that come too late, [S, K]."""
    choices_N = experts_SK.T.flatten()  # all first choices, then all second ones
    sorted_N, order_N = choices_N.sort(stable=True)
    first_of_same_N = torch.searchsorted(sorted_N, sorted_N)
    place_N = torch.arange(len(sorted_N), device=sorted_N.device) - first_of_same_N
    dropped_N = torch.empty_like(order_N, dtype=torch.bool)
    dropped_N[order_N] = place_N >= room
    return dropped_N.view_as(experts_SK.T).T
