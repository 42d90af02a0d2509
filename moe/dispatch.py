"""Moving tokens to their experts and back, dropless, over an expert-parallel process group of any size.

Token copies are sorted by expert, so that each expert's input is one contiguous block; with several processes an
all-to-all with uneven splits carries each block to the process that owns the expert. Nothing is padded and no T x E x C
buffer exists. The split sizes are the only values the host waits for.

Expert ids are global; process r of the group owns the E/R consecutive ids from r * E/R. All processes of the group must
call `dispatch` and `combine` together, also one that holds no token for some expert, or none at all.

Shapes: T local tokens, K experts a token, N = T * K copies, M copies received, D hidden, E experts, R processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe.router import Routing


@dataclass(frozen=True)
class ExpertParallel:
    """The processes that share one set of experts.

    Attributes:
        group: their process group; None when this process owns all experts.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Processes in the group."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return 0 if self.group is None else dist.get_rank(self.group)


@dataclass(frozen=True)
class Dispatched:
    """Copies that arrived for this process's experts, and the way back.

    Attributes:
        x_MD: received copies, sorted by local expert.
        splits: how many of them each local expert gets.
        order_N: local copies in order of expert.
        regroup_M: order of arrival -> order of local expert; None when already in order.
        sent: copies sent to each process.
        received: copies received from each process.
    """

    x_MD: Tensor
    splits: list[int]
    order_N: Tensor
    regroup_M: Tensor | None
    sent: list[int]
    received: list[int]


class _AllToAll(torch.autograd.Function):
    """All-to-all of row blocks; the gradient travels the same way back."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        out_MD = x_ND.new_empty((sum(received), x_ND.shape[1]))
        dist.all_to_all_single(out_MD, x_ND.contiguous(), received, sent, group=group)
        return out_MD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], ctx.sent, ctx.received, ctx.group), None, None, None


def _all_to_all(x_ND: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    out_MD: Tensor = _AllToAll.apply(x_ND, received, sent, group)  # type: ignore[no-untyped-call]
    return out_MD


def dispatch(x_TD: Tensor, routing: Routing, num_experts: int, parallel: ExpertParallel) -> Dispatched:
    """Send each token to its experts' owners."""
    top_k = routing.experts_TK.shape[1]
    experts_N = routing.experts_TK.flatten()
    order_N = experts_N.argsort(stable=True)
    x_ND = x_TD[order_N // top_k]
    counts_E = experts_N.bincount(minlength=num_experts)
    if parallel.group is None:
        return Dispatched(x_ND, counts_E.tolist(), order_N, None, [], [])
    counts_RL = torch.empty_like(counts_E)
    dist.all_to_all_single(counts_RL, counts_E, group=parallel.group)
    counts_RL = counts_RL.view(parallel.size, -1)
    sent: list[int] = counts_E.view(parallel.size, -1).sum(1).tolist()
    received: list[int] = counts_RL.sum(1).tolist()
    x_MD = _all_to_all(x_ND, received, sent, parallel.group)
    num_local = counts_RL.shape[1]
    local_expert_M = (
        torch.arange(num_local, device=x_TD.device).repeat(parallel.size).repeat_interleave(counts_RL.flatten())
    )
    regroup_M = local_expert_M.argsort(stable=True)
    return Dispatched(x_MD[regroup_M], counts_RL.sum(0).tolist(), order_N, regroup_M, sent, received)


def combine(y_MD: Tensor, dispatched: Dispatched, routing: Routing, parallel: ExpertParallel) -> Tensor:
    """Bring the experts' outputs home and add them up with the gate's weights.

    Args:
        y_MD: expert outputs, in the order of `dispatched.x_MD`.
        dispatched: what `dispatch` returned.
        routing: the same as for `dispatch`.
        parallel: likewise.

    Returns:
        [T, D].
    """
    if parallel.group is not None and dispatched.regroup_M is not None:
        y_MD = y_MD[_inverse(dispatched.regroup_M)]
        y_MD = _all_to_all(y_MD, dispatched.sent, dispatched.received, parallel.group)
    y_TKD = y_MD[_inverse(dispatched.order_N)].unflatten(0, routing.experts_TK.shape)
    return torch.einsum("tkd,tk->td", y_TKD, routing.weights_TK)


def _inverse(permutation_N: Tensor) -> Tensor:
    inverse_N = torch.empty_like(permutation_N)
    inverse_N[permutation_N] = torch.arange(permutation_N.numel(), device=permutation_N.device)
    return inverse_N
