"""Orders of rows, to sort them and to bring them back.

Shapes: N rows, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Permutation:
    """An order of N rows.

    Attributes:
        order_N: which row comes where; may end before the dropped rows, which come last.
        inverse_N: where each row went; 0 for the dropped ones.
        dropped_N: true for rows that went nowhere; None when there are none.
    """

    order_N: Tensor
    inverse_N: Tensor
    dropped_N: Tensor | None = None

    @classmethod
    def sorting(cls, keys_N: Tensor) -> Permutation:
        """The order that sorts the keys, equal ones as they are."""
        order_N = keys_N.argsort(stable=True)
        inverse_N = torch.empty_like(order_N)
        inverse_N[order_N] = torch.arange(len(order_N), device=order_N.device)
        return cls(order_N, inverse_N)

    def without(self, dropped_N: Tensor, num_rows: int) -> Permutation:
        """The order of the first rows alone; the dropped ones are behind all others, and at least one row is not."""
        return Permutation(self.order_N[:num_rows], self.inverse_N.masked_fill(dropped_N, 0), dropped_N)

    def take(self, x_TD: Tensor, copies: int = 1) -> Tensor:
        """Rows in this order.

        Args:
            x_TD: N / copies rows.
            copies: times that each row is meant in a run, before the reordering.

        Returns:
            [N, D], or as many rows as the order has.
        """
        out_ND: Tensor = _Take.apply(x_TD, self, copies)  # type: ignore[no-untyped-call]
        return out_ND

    def restore(self, y_ND: Tensor) -> Tensor:
        """Rows as they were before; of an order that drops none."""
        return Permutation(self.inverse_N, self.order_N).take(y_ND)


class _Take(torch.autograd.Function):
    """Gathers rows; the gradient is gathered too, by the inverse, instead of scattered and added."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, permutation: Permutation, copies: int) -> Tensor:
        # as attributes of ctx they would stay where a recomputed layer keeps its input only
        ctx.save_for_backward(permutation.inverse_N, permutation.dropped_N)
        ctx.copies = copies
        return x_TD.index_select(0, permutation.order_N // copies if copies > 1 else permutation.order_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        inverse_N, dropped_N = ctx.saved_tensors
        grad_ND = gradients[0].index_select(0, inverse_N)
        if dropped_N is not None:
            grad_ND.masked_fill_(dropped_N[:, None], 0)
        return grad_ND.unflatten(0, (-1, ctx.copies)).sum(1) if ctx.copies > 1 else grad_ND, None, None
