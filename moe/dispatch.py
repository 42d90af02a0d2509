"""Moving tokens to their experts and back, dropless, over an expert-parallel process group of any size.

Token copies are sorted by expert, so that each expert's input is one contiguous block; with several processes an
all-to-all with uneven splits carries each block to the process that owns the expert. Nothing is padded and no T x E x C
buffer exists. The split sizes are the only values the host waits for.

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
from moe.router import Routing, count_choices


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


@dataclass(frozen=True)
class Permutation:
    """An order of N rows.

    Attributes:
        order_N: which row comes where.
        inverse_N: where each row went.
    """

    order_N: Tensor
    inverse_N: Tensor

    @classmethod
    def sorting(cls, keys_N: Tensor) -> Permutation:
        """The order that sorts the keys, equal ones as they are."""
        order_N = keys_N.argsort(stable=True)
        inverse_N = torch.empty_like(order_N)
        inverse_N[order_N] = torch.arange(len(order_N), device=order_N.device)
        return cls(order_N, inverse_N)

    def take(self, x_TD: Tensor, copies: int = 1) -> Tensor:
        """Rows in this order.

        Args:
            x_TD: N / copies rows.
            copies: times that each row is meant in a run, before the reordering.

        Returns:
            [N, D].
        """
        return _take(x_TD, self.order_N, self.inverse_N, copies)

    def restore(self, y_ND: Tensor) -> Tensor:
        """Rows as they were before."""
        return _take(y_ND, self.inverse_N, self.order_N, 1)


class _Take(torch.autograd.Function):
    """Gathers rows; the gradient is gathered too, by the inverse, instead of scattered and added."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, inverse_N: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse_N)
        ctx.copies = copies
        return x_TD.index_select(0, order_N // copies if copies > 1 else order_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_N,) = ctx.saved_tensors
        grad_ND = gradients[0].index_select(0, inverse_N)
        return grad_ND.unflatten(0, (-1, ctx.copies)).sum(1) if ctx.copies > 1 else grad_ND, None, None, None


def _take(x_TD: Tensor, order_N: Tensor, inverse_N: Tensor, copies: int) -> Tensor:
    out_ND: Tensor = _Take.apply(x_TD, order_N, inverse_N, copies)  # type: ignore[no-untyped-call]
    return out_ND


def dispatch(x_TD: Tensor, routing: Routing, num_experts: int, parallel: ExpertParallel) -> Dispatched:
    """Send each token to its experts' owners, without waiting for those that arrive here."""
    experts_N = routing.experts_TK.flatten()
    home = Permutation.sorting(experts_N)
    x_ND = home.take(x_TD, copies=routing.experts_TK.shape[1])
    counts_E = count_choices(experts_N, num_experts)
    if parallel.group is None:
        stay = Exchange(None, [], [])
        return Dispatched(stay.begin(x_ND), stay, stay, counts_E, home, None, routing.weights_TK)
    counts_RL = torch.empty_like(counts_E)
    dist.all_to_all_single(counts_RL, counts_E, group=parallel.group)
    counts_RL = counts_RL.view(parallel.size, -1)
    sent, received = torch.stack([counts_E.view_as(counts_RL).sum(1), counts_RL.sum(1)]).tolist()
    there = Exchange(parallel.group, sent, received)
    travelling = there.begin(x_ND)
    local_experts = torch.arange(counts_RL.shape[1], device=x_TD.device).repeat(parallel.size)
    regroup = Permutation.sorting(local_experts.repeat_interleave(counts_RL.flatten(), output_size=sum(received)))
    return Dispatched(travelling, there, there.reverse(), counts_RL.sum(0), home, regroup, routing.weights_TK)


def receive(dispatched: Dispatched) -> Tensor:
    """Wait for the copies: [M, D], sorted by local expert."""
    x_MD = dispatched.there.finish(dispatched.travelling)
    return x_MD if dispatched.regroup is None else dispatched.regroup.take(x_MD)


def send_home(y_MD: Tensor, dispatched: Dispatched) -> Travelling:
    """Send the experts' outputs, in the order of `receive`, to the tokens' owners, without waiting."""
    return dispatched.back.begin(y_MD if dispatched.regroup is None else dispatched.regroup.restore(y_MD))


def combine(travelling: Travelling, dispatched: Dispatched) -> Tensor:
    """Wait for what `send_home` sent, and add each token's outputs up with the gate's weights: [T, D]."""
    y_ND, home = dispatched.back.finish(travelling), dispatched.home
    out_TD: Tensor = _WeightedSum.apply(y_ND, dispatched.weights_TK, home.order_N, home.inverse_N)  # type: ignore[no-untyped-call]
    return out_TD


class _WeightedSum(torch.autograd.Function):
    """Rows brought back to their tokens and added up with weights, without a copy of them per step of the sum."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weights_TK: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        num_tokens, top_k = weights_TK.shape
        y_TKD = y_ND.index_select(0, inverse_N).view(num_tokens, top_k, -1)
        ctx.save_for_backward(y_TKD, weights_TK, order_N)
        out_TD = y_TKD[:, 0] * weights_TK[:, :1]
        for choice in range(1, top_k):
            out_TD.addcmul_(y_TKD[:, choice], weights_TK[:, choice, None])
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_TKD, weights_TK, order_N = ctx.saved_tensors
        grad_TD = gradients[0]
        grad_weights_TK = (y_TKD * grad_TD[:, None]).sum(-1)
        grad_y_ND = grad_TD.index_select(0, order_N // weights_TK.shape[1])
        return grad_y_ND.mul_(weights_TK.flatten()[order_N, None]), grad_weights_TK, None, None
