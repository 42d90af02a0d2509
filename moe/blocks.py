"""What is done with the experts' blocks of token copies on a CPU, and how by PyTorch's products.

Shapes: M token copies, E local experts, D hidden, F expert intermediate size, G = 2 F gate rows, then up rows; B copies
of one expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.threads import for_parts

Block = TypeVar("Block")


class Forward(NamedTuple):
    """What the forward pass reads, and `h_MG` and `y_MD` that it fills."""

    x_MD: Tensor
    w13_EGD: Tensor
    w2_EDF: Tensor
    h_MG: Tensor
    y_MD: Tensor


class Backward(NamedTuple):
    """What the backward pass reads, and the last three, that it fills; no gradient of weights where None."""

    x_MD: Tensor
    h_MG: Tensor
    grad_y_MD: Tensor
    w13_EGD: Tensor
    w2_EDF: Tensor
    grad_x_MD: Tensor
    grad_w13_EGD: Tensor | None
    grad_w2_EDF: Tensor | None


class Blocks(Protocol):
    """The two passes over all experts, `counts` copies each; all tensors are contiguous."""

    def forward(self, counts: list[int], tensors: Forward) -> None:
        """`h = w13 x` and `y = w2(silu(gate of h) * up of h)`."""
        ...

    def backward(self, counts: list[int], tensors: Backward) -> None:
        """Gradients; zeros for the weights of an expert without copies."""
        ...


class ProductBlocks:
    """By PyTorch's products of single blocks: any number type, any processor."""

    def forward(self, counts: list[int], tensors: Forward) -> None:
        """See `Blocks`."""
        x_MD, w13_EGD, w2_EDF, h_MG, y_MD = tensors
        weights = (w13_EGD.transpose(1, 2).unbind(), w2_EDF.transpose(1, 2).unbind())
        blocks = zip(*(rows.split(counts) for rows in (x_MD, h_MG, y_MD)), *weights, strict=True)
        _for_each(_forward_block, list(blocks), counts)

    def backward(self, counts: list[int], tensors: Backward) -> None:
        """See `Blocks`."""
        x_MD, h_MG, grad_y_MD, w13_EGD, w2_EDF, grad_x_MD, grad_w13_EGD, grad_w2_EDF = tensors
        nothing = [None] * len(counts)
        blocks = zip(
            *(rows.split(counts) for rows in (x_MD, h_MG, grad_y_MD)),
            w13_EGD.unbind(),
            w2_EDF.unbind(),
            grad_x_MD.split(counts),
            nothing if grad_w13_EGD is None else grad_w13_EGD.unbind(),
            nothing if grad_w2_EDF is None else grad_w2_EDF.unbind(),
            strict=True,
        )
        _for_each(_backward_block, [Backward(*block) for block in blocks], counts)


def _for_each(function: Callable[[Block], None], blocks: list[Block], counts: list[int]) -> None:
    def run(part: range) -> None:
        with torch.inference_mode():
            for index in part:
                function(blocks[index])

    for_parts(run, counts)


def _forward_block(block: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    x_BD, h_BG, y_BD, w13_DG, w2_FD = block
    if not len(x_BD):
        return
    gate_BF, up_BF = torch.mm(x_BD, w13_DG, out=h_BG).chunk(2, 1)
    torch.mm(F.silu(gate_BF).mul_(up_BF), w2_FD, out=y_BD)


def _backward_block(block: Backward) -> None:
    x_BD, h_BG, grad_y_BD, w13_GD, w2_DF, grad_x_BD, grad_w13_GD, grad_w2_DF = block
    if not len(x_BD):
        for gradient in (grad_w13_GD, grad_w2_DF):
            if gradient is not None:
                gradient.zero_()
        return
    gate_BF, up_BF = h_BG.chunk(2, 1)
    activated_BF = F.silu(gate_BF)
    grad_a_BF = torch.mm(grad_y_BD, w2_DF)
    if grad_w2_DF is not None:
        torch.mm(grad_y_BD.T, activated_BF * up_BF, out=grad_w2_DF)
    grad_h_BG = torch.empty_like(h_BG)
    grad_gate_BF, grad_up_BF = grad_h_BG.chunk(2, 1)
    torch.mul(grad_a_BF, activated_BF, out=grad_up_BF)
    torch.ops.aten.silu_backward.grad_input(grad_a_BF.mul_(up_BF), gate_BF, grad_input=grad_gate_BF)
    torch.mm(grad_h_BG, w13_GD, out=grad_x_BD)
    if grad_w13_GD is not None:
        torch.mm(grad_h_BG.T, x_BD, out=grad_w13_GD)
