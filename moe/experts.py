"""The experts that one process owns: SwiGLU networks with stacked weights, applied to contiguous blocks of tokens.

Two ways to the same products. `grouped_mm` leaves all blocks to one kernel: the way on GPUs. On CPUs PyTorch's
`grouped_mm` is a loop of single products, and the gradients of its inputs are two more; there `_BlockSwiGLU` walks the
blocks itself, each once forward and once backward while its rows are in cache, with the experts divided among threads
instead of the rows of each small product, so that nothing waits within a block and results do not depend on the number
of threads.

Gate and up projection lie in one stack, since one product of twice the width is faster than two.

Shapes: M token copies, E local experts, D hidden, F expert intermediate size, G = 2 F gate rows, then up rows; B copies
of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe.config import MoEConfig

MAX_THREADS = 8
"""Every product takes the interpreter's lock for a moment; among more threads the wait would outweigh the gain."""


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
    return F.grouped_mm(F.silu(gate_MF) * up_MF, w2_EDF.transpose(1, 2), offs=ends_E)


def block_swiglu(x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts_E: Tensor) -> Tensor:
    """All experts block by block, on several threads; shapes as `Experts.forward`."""
    y_MD: Tensor = _BlockSwiGLU.apply(x_MD, w13_EGD, w2_EDF, counts_E.tolist())  # type: ignore[no-untyped-call]
    return y_MD


class _BlockSwiGLU(torch.autograd.Function):
    """Keeps the inputs and the products before the activation: M x (D + G) numbers."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, w13_EGD: Tensor, w2_EDF: Tensor, counts: list[int]) -> Tensor:
        h_MG, y_MD = x_MD.new_empty(len(x_MD), w13_EGD.shape[1]), torch.empty_like(x_MD)
        blocks = zip(
            *(x.split(counts) for x in (x_MD, h_MG, y_MD)),
            w13_EGD.transpose(1, 2).unbind(),
            w2_EDF.transpose(1, 2).unbind(),
            strict=True,
        )
        _for_each(_forward_block, list(blocks), counts)
        ctx.save_for_backward(x_MD, w13_EGD, w2_EDF, h_MG)
        ctx.counts = counts
        return y_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x_MD, w13_EGD, w2_EDF, h_MG = ctx.saved_tensors
        grad_y_MD, grad_x_MD = gradients[0].contiguous(), torch.empty_like(x_MD)
        # frozen experts cost neither their gradients' memory nor their products
        grad_w13_EGD = torch.empty_like(w13_EGD) if ctx.needs_input_grad[1] else None
        grad_w2_EDF = torch.empty_like(w2_EDF) if ctx.needs_input_grad[2] else None
        nothing = [None] * len(ctx.counts)
        blocks = zip(
            *(x.split(ctx.counts) for x in (x_MD, h_MG, grad_y_MD, grad_x_MD)),
            w13_EGD.unbind(),
            w2_EDF.unbind(),
            nothing if grad_w13_EGD is None else grad_w13_EGD.unbind(),
            nothing if grad_w2_EDF is None else grad_w2_EDF.unbind(),
            strict=True,
        )
        _for_each(_backward_block, [_Backward(*block) for block in blocks], ctx.counts)
        return grad_x_MD, grad_w13_EGD, grad_w2_EDF, None


def _forward_block(block: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    x_BD, h_BG, y_BD, w13_DG, w2_FD = block
    if not len(x_BD):
        return
    gate_BF, up_BF = torch.mm(x_BD, w13_DG, out=h_BG).chunk(2, 1)
    torch.mm(F.silu(gate_BF).mul_(up_BF), w2_FD, out=y_BD)


class _Backward(NamedTuple):
    """What one expert's backward pass reads, and the views of the gradients that it fills."""

    x_BD: Tensor
    h_BG: Tensor
    grad_y_BD: Tensor
    grad_x_BD: Tensor
    w13_GD: Tensor
    w2_DF: Tensor
    grad_w13_GD: Tensor | None
    grad_w2_DF: Tensor | None


def _backward_block(block: _Backward) -> None:
    x_BD, h_BG, grad_y_BD, grad_x_BD, w13_GD, w2_DF, grad_w13_GD, grad_w2_DF = block
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


def _for_each(function: Callable[[Any], None], blocks: Sequence[Any], counts: Sequence[int]) -> None:
    """Call the function with each block, on as many threads as PyTorch may use."""
    num_threads = min(torch.get_num_threads(), MAX_THREADS)
    parts = _parts(counts, num_threads)

    def run(part: range) -> None:
        with torch.inference_mode():
            for index in part:
                function(blocks[index])

    if num_threads == 1:
        run(parts[0])
    else:
        list(_threads(num_threads).map(run, parts))  # raises what a thread raised


def _parts(counts: Sequence[int], num_parts: int) -> list[range]:
    """Consecutive ranges of experts with about equal numbers of copies; every expert is in one."""
    total, done, starts = sum(counts), 0, [0]
    for index, count in enumerate(counts):
        done += count
        if done * num_parts >= total * len(starts) and len(starts) < num_parts:
            starts.append(index + 1)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


@cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads whose own products are single-threaded."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads, "expert", initializer=lambda: torch.set_num_threads(1))
    # what one thread sets is also what threads born later begin with: have all of these born, then set it back
    all_are_born = Barrier(num_threads)
    list(pool.map(lambda _: all_are_born.wait(), range(num_threads)))
    torch.set_num_threads(before)
    return pool
