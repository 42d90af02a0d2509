"""The experts that one process owns: SwiGLU networks with stacked weights, applied to contiguous blocks of tokens.

Two ways to the same products. `grouped_mm` leaves all blocks to one kernel: the way on GPUs; its tests run on CPUs, no
GPU has tried it yet. On CPUs PyTorch's `grouped_mm` is a loop of single products, and the gradients of its inputs are
two more; there `_BlockSwiGLU` walks the blocks itself, each once forward and once backward while its rows are in cache,
with the experts divided among threads instead of the rows of each small product, so that nothing waits within a block
and results do not depend on the number of threads. What is done with a block is the kernel of `moe.native` where it can
be had, else PyTorch's products.

Gate and up projection lie in one stack, since one product of twice the width is faster than two.

Shapes: M token copies, E local experts, D hidden, F expert intermediate size, G = 2 F gate rows, then up rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe.blocks import Backward, Blocks, Forward, ProductBlocks
from moe.config import MoEConfig
from moe.functional import gate
from moe.native import kernel_blocks


class Experts(nn.Module):
    """`w2(silu(w1 x) * w3 x)` for each local expert; `w13_EGD` holds w1 above w3.

    Args:
        config: the architecture.
        num_local: experts that this process owns.
    """

    def __init__(self, config: MoEConfig, num_local: int) -> None:
        super().__init__()
        hidden, intermediate = config.hidden_size, config.expert_intermediate_size
        self.w13_EGD = nn.Parameter(torch.empty(num_local, 2 * intermediate, hidden))
        self.w2_EDF = nn.Parameter(torch.empty(num_local, hidden, intermediate))

    def forward(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """Apply each expert to its block.

        Args:
            x_MD: copies sorted by local expert.
            counts_E: copies of each local expert, int64; zeros are fine, the experts' gradients are then zeros, never
                None.

        Returns:
            [M, D].
        """
        if x_MD.is_cuda:
            return grouped_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)
        return block_swiglu(x_MD, self.w13_EGD, self.w2_EDF, counts_E)


def grouped_swiglu(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """All experts by `torch.nn.functional.grouped_mm`; shapes as `Experts.forward`. Never waits for the host."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    h_MG = F.grouped_mm(x_MD, w13_EGD.transpose(1, 2), offs=ends_E)
    gate_MF, up_MF = h_MG.chunk(2, 1)
    return F.grouped_mm(gate(gate_MF, up_MF), w2_EDF.transpose(1, 2), offs=ends_E)


def block_swiglu(
    x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor, blocks: Blocks | None = None
) -> Tensor:
    """All experts block by block, on several threads; shapes as `Experts.forward`.

    Args:
        x_MD: copies sorted by local expert.
        w13_EGD: gate and up projections.
        w2_EDF: down projections.
        counts_E: copies of each local expert.
        blocks: what is done with a block; by default the fastest there is.

    Raises:
        ValueError: the shapes or number types do not fit one another.
    """
    counts = counts_E.tolist()
    num_experts, hidden, intermediate = w2_EDF.shape
    if len(counts) != num_experts or w13_EGD.shape != (num_experts, 2 * intermediate, hidden):
        raise ValueError(f"{len(counts)} blocks, w13 {tuple(w13_EGD.shape)} and w2 {tuple(w2_EDF.shape)} do not fit")
    if x_MD.shape != (sum(counts), hidden) or not x_MD.dtype == w13_EGD.dtype == w2_EDF.dtype:
        raise ValueError(
            f"copies {tuple(x_MD.shape)} in {x_MD.dtype} do not fit blocks of {sum(counts)} rows and experts of width "
            f"{hidden} in {w13_EGD.dtype} and {w2_EDF.dtype}"
        )
    blocks = blocks or kernel_blocks(x_MD, num_experts, intermediate) or ProductBlocks()
    y_MD: Tensor = _BlockSwiGLU.apply(x_MD, w13_EGD, w2_EDF, counts, blocks)  # type: ignore[no-untyped-call]
    return y_MD


class _BlockSwiGLU(torch.autograd.Function):
    """Keeps the inputs and the products before the activation: M x (D + G) numbers."""

    @staticmethod
    def forward(  # noqa: PLR0917  the call is autograd's
        ctx: Any, x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts: list[int], blocks: Blocks
    ) -> Tensor:
        x_MD, w13_EGD, w2_EDF = x_MD.contiguous(), w13_EGD.contiguous(), w2_EDF.contiguous()
        h_MG, y_MD = x_MD.new_empty(len(x_MD), w13_EGD.shape[1]), torch.empty_like(x_MD)
        blocks.forward(counts, Forward(x_MD, w13_EGD, w2_EDF, h_MG, y_MD))
        ctx.save_for_backward(x_MD, w13_EGD, w2_EDF, h_MG)
        ctx.counts, ctx.blocks = counts, blocks
        return y_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x_MD, w13_EGD, w2_EDF, h_MG = ctx.saved_tensors
        grad_y_MD, grad_x_MD = gradients[0].contiguous(), torch.empty_like(x_MD)
        # frozen experts cost neither their gradients' memory nor their products
        grad_w13_EGD = torch.empty_like(w13_EGD) if ctx.needs_input_grad[1] else None
        grad_w2_EDF = torch.empty_like(w2_EDF) if ctx.needs_input_grad[2] else None
        tensors = Backward(x_MD, h_MG, grad_y_MD, w13_EGD, w2_EDF, grad_x_MD, grad_w13_EGD, grad_w2_EDF)
        ctx.blocks.backward(ctx.counts, tensors)
        return grad_x_MD, grad_w13_EGD, grad_w2_EDF, None, None
