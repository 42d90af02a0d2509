"""The experts' kernel for CPUs, `swiglu.cpp`, as `moe.blocks.Blocks`.

The processor must have AVX2 or AVX-512 and the machine a C++ compiler; elsewhere the experts are computed by PyTorch's
products.

Shapes: as in `moe.blocks`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from moe.blocks import Backward, Forward
from moe.compiler import load_or_none

SOURCE = Path(__file__).with_name("swiglu.cpp")
FLAGS = ("-fopenmp",)
PROCESSORS = ("AVX2", "AVX512")
"""Capabilities by PyTorch's names."""
AVX2_MOST_WEIGHTS, AVX2_MOST_ROWS = 2**19, 128
"""Of an expert of fp32 numbers, on AVX2: above either, PyTorch's products, which copy parts of the weights together for
the caches, are as fast or faster (docs/benchmarks/moe-layer.md)."""

_SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class KernelBlocks:
    """The functions of `swiglu.cpp` for one number type, as `moe.blocks.Blocks`.

    Attributes:
        forward_experts: `swiglu_forward_*`; lets other Python threads run, as does the next.
        backward_experts: `swiglu_backward_*`.
        advise_huge_pages: of the same name.

    Both passes raise MemoryError if there is no room for what a thread holds of one expert.
    """

    forward_experts: Callable[..., bool]
    backward_experts: Callable[..., bool]
    advise_huge_pages: Callable[[int, int], None]

    def forward(self, counts: list[int], tensors: Forward) -> None:
        """See `moe.blocks.Blocks`."""
        _call(self.forward_experts, counts, tensors, tensors.w2_EDF)

    def backward(self, counts: list[int], tensors: Backward) -> None:
        """See `moe.blocks.Blocks`."""
        for gradient in (tensors.grad_w13_EGD, tensors.grad_w2_EDF):
            if gradient is not None:
                self.advise_huge_pages(gradient.data_ptr(), gradient.nbytes)
        _call(self.backward_experts, counts, tensors, tensors.w2_EDF)


def _call(function: Callable[..., bool], counts: list[int], tensors: Forward | Backward, w2_EDF: Tensor) -> None:
    starts = (ctypes.c_int64 * (len(counts) + 1))(0, *accumulate(counts))
    pointers = [tensor if tensor is None else tensor.data_ptr() for tensor in tensors]
    _, hidden, intermediate = w2_EDF.shape
    if not function(torch.get_num_threads(), len(counts), starts, hidden, intermediate, *pointers):
        raise MemoryError(f"no memory for {max(counts)} copies of one expert of {hidden} x {intermediate}")


def kernel_blocks(x_MD: Tensor, num_experts: int, intermediate_size: int) -> KernelBlocks | None:
    """The kernel for such experts, or None where PyTorch must do, or does better.

    Args:
        x_MD: token copies.
        num_experts: that share them.
        intermediate_size: of an expert.
    """
    num_copies, hidden_size = x_MD.shape
    if x_MD.device.type != "cpu" or x_MD.dtype not in _SUFFIXES:
        return None
    if x_MD.dtype == torch.bfloat16 and (hidden_size % 2 or intermediate_size % 2):
        return None  # it multiplies pairs
    processor = torch.backends.cpu.get_cpu_capability()
    if processor not in PROCESSORS:
        return None
    if processor == "AVX2" and x_MD.dtype == torch.float32:
        weights = 3 * hidden_size * intermediate_size
        if weights > AVX2_MOST_WEIGHTS or num_copies > AVX2_MOST_ROWS * num_experts:
            return None
    return _load(_SUFFIXES[x_MD.dtype])


@cache
def _load(suffix: str) -> KernelBlocks | None:
    library = load_or_none(SOURCE, "PyTorch computes the experts, in up to 3 times the time", FLAGS)
    if library is None:
        return None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    forward, backward = (getattr(library, f"swiglu_{which}_{suffix}") for which in ("forward", "backward"))
    for function, num_tensors in ((forward, 5), (backward, 8)):
        function.argtypes = [ctypes.c_int, number, pointer, number, number, *[pointer] * num_tensors]
        function.restype = ctypes.c_bool
    advise = library.advise_huge_pages
    advise.argtypes, advise.restype = [pointer, number], None
    return KernelBlocks(forward, backward, advise)
