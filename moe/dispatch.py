"""Moving tokens to their experts and back, over an expert-parallel process group of any size.

Token copies are sorted by expert, so that each expert's input is one contiguous block; with several processes an
all-to-all with uneven splits carries each block to the process that owns the expert. Nothing is padded and no T x E x C
buffer exists. The split sizes are the only values the host waits for.

Dropped copies are sorted behind all others, and are not sent. On a GPU that holds all experts the host does not know
how many there are, and does not wait to learn it: their rows stay behind the experts' blocks, and reach no result.

Four steps, so that other work can run while the copies travel: `dispatch` sends them, `receive` waits for them,
`send_home` sends the experts' outputs, `combine` waits for those and adds them up.

Expert ids are global; process r of the group owns the E/R consecutive ids from r * E/R. All processes of the group must
take the four steps together, also one that holds no token for some expert, or none at all.

Shapes: T local tokens, K experts a token, N = T * K copies, M copies received, D hidden, E experts, R processes,
L = E / R local experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe.exchange import Exchange, Travelling
from moe.permutation import Permutation
from moe.router import Routing, count_choices


@dataclass(frozen=True)
class ExpertParallel:
    """The processes that share one set of experts.

    Attributes:
        group: their process group; None when this process owns all experts.

    Raises:
        ValueError: this process is not in the group.
    """

    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.group is not None and dist.get_rank(self.group) < 0:
            raise ValueError("this process is not in the group that is to share its experts")

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
    """Copies on the way to this process's experts, and what brings them back.

    Attributes:
        travelling: the copies, for `receive`.
        there: their exchange among the processes.
        back: the exchange of the experts' outputs.
        counts_E: how many copies each local expert gets, int64.
        home: local copies in order of expert, and back.
        regroup: order of arrival to order of local expert, and back; None when already in order.
        weights_TK: the gate's, for the sum.
    """

    travelling: Travelling
    there: Exchange
    back: Exchange
    counts_E: Tensor
    home: Permutation
    regroup: Permutation | None
    weights_TK: Tensor


def dispatch(x_TD: Tensor, routing: Routing, num_experts: int, parallel: ExpertParallel) -> Dispatched:
    """Send each token to its experts' owners, without waiting for those that arrive here."""
    keys_N = routing.experts_TK.flatten()
    if routing.dropped_TK is not None:
        keys_N = keys_N.masked_fill(routing.dropped_TK.flatten(), num_experts)
    home = Permutation.sorting(keys_N)
    counts_RL, there = _announce(count_choices(keys_N, num_experts + 1)[:num_experts], len(keys_N), parallel)
    if routing.dropped_TK is not None:
        home = home.without(routing.dropped_TK.flatten(), there.num_sent)
    travelling = there.begin(home.take(x_TD, copies=routing.experts_TK.shape[1]))
    regroup = None if parallel.group is None else _by_local_expert(counts_RL, there.num_received)
    return Dispatched(travelling, there, there.reverse(), counts_RL.sum(0), home, regroup, routing.weights_TK)


def _announce(counts_E: Tensor, num_copies: int, parallel: ExpertParallel) -> tuple[Tensor, Exchange]:
    """How many copies come from each process for each local expert, and the exchange that will bring them."""
    if parallel.group is None:
        num_rows = int(counts_E.sum()) if counts_E.device.type == "cpu" else num_copies
        return counts_E[None], Exchange(None, [num_rows], [num_rows])
    counts_RL = torch.empty_like(counts_E)
    dist.all_to_all_single(counts_RL, counts_E, group=parallel.group)
    counts_RL = counts_RL.view(parallel.size, -1)
    sent, received = torch.stack([counts_E.view_as(counts_RL).sum(1), counts_RL.sum(1)]).tolist()
    return counts_RL, Exchange(parallel.group, sent, received)


def _by_local_expert(counts_RL: Tensor, num_received: int) -> Permutation:
    """From order of sender, then of expert, to order of expert."""
    num_senders, num_local = counts_RL.shape
    experts_RL = torch.arange(num_local, device=counts_RL.device).repeat(num_senders)
    return Permutation.sorting(experts_RL.repeat_interleave(counts_RL.flatten(), output_size=num_received))


def receive(dispatched: Dispatched) -> Tensor:
    """Wait for the copies: [M, D], sorted by local expert; behind them may be rows without content."""
    x_MD = dispatched.there.finish(dispatched.travelling)
    return x_MD if dispatched.regroup is None else dispatched.regroup.take(x_MD)


def send_home(y_MD: Tensor, dispatched: Dispatched) -> Travelling:
    """Send the experts' outputs, in the order of `receive`, to the tokens' owners, without waiting."""
    return dispatched.back.begin(y_MD if dispatched.regroup is None else dispatched.regroup.restore(y_MD))


def combine(travelling: Travelling, dispatched: Dispatched) -> Tensor:
    """Wait for what `send_home` sent, and add each token's outputs up with the gate's weights: [T, D]."""
    y_ND = dispatched.back.finish(travelling)
    out_TD: Tensor = _WeightedSum.apply(y_ND, dispatched.weights_TK, dispatched.home)  # type: ignore[no-untyped-call]
    return out_TD


class _WeightedSum(torch.autograd.Function):
    """Rows brought back to their tokens and added up with weights, without a copy of them per step of the sum.

    A dropped copy reads some other row, and weighs nothing.
    """

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weights_TK: Tensor, home: Permutation) -> Tensor:
        num_tokens, top_k = weights_TK.shape
        y_TKD = y_ND.index_select(0, home.inverse_N).view(num_tokens, top_k, y_ND.shape[1])
        ctx.save_for_backward(y_TKD, weights_TK, home.order_N)
        out_TD = y_TKD[:, 0] * weights_TK[:, :1]
        for choice in range(1, top_k):
            out_TD.addcmul_(y_TKD[:, choice], weights_TK[:, choice, None])
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (y_TKD, weights_TK, order_N), grad_TD = ctx.saved_tensors, gradients[0]
        grad_weights_TK = (y_TKD * grad_TD[:, None]).sum(-1)
        if not ctx.needs_input_grad[0]:  # below the first trained router
            return None, grad_weights_TK, None
        grad_y_ND = grad_TD.index_select(0, order_N // weights_TK.shape[1])
        return grad_y_ND.mul_(weights_TK.flatten()[order_N, None]), grad_weights_TK, None
