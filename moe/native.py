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


def kernel_blocks(x_MD: Tensor, intermediate_size: int) -> KernelBlocks | None:
    """The kernel for such experts, or None where PyTorch must do.

    Args:
        x_MD: token copies.
        intermediate_size: of an expert.
    """
    if x_MD.device.type != "cpu" or x_MD.dtype not in _SUFFIXES:
        return None
    if x_MD.dtype == torch.bfloat16 and (x_MD.shape[1] % 2 or intermediate_size % 2):
        return None  # it multiplies pairs
    return _load(_SUFFIXES[x_MD.dtype])


@cache
def _load(suffix: str) -> KernelBlocks | None:
    if torch.backends.cpu.get_cpu_capability() not in PROCESSORS:
        return None
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
