"""The experts' kernel for CPUs, `swiglu.cpp`: compiled for this processor at its first use, then kept.

The processor must have AVX-512 (and AVX512-BF16 for bf16) and the machine a C++ compiler; elsewhere the experts are
computed by PyTorch's products. The library is kept in the user's cache directory under the hash of all that it depends
on, so a home directory that unlike machines share is no trouble. Several processes may compile at once: each writes a
file of its own and renames it, and one that is killed leaves nothing that another would wait for.

Shapes: as in `moe.blocks`.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from moe.blocks import Backward, Forward
from moe.threads import for_parts

SOURCE = Path(__file__).with_name("swiglu.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
COMPILE_TIMEOUT_S = 120
_SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelBlocks:
    """The functions of `swiglu.cpp` for one number type, as `moe.blocks.Blocks`.

    Attributes:
        forward_experts: `swiglu_forward_*`; lets other Python threads run, as does the next.
        backward_experts: `swiglu_backward_*`.
        advise_huge_pages: of the same name.
    """

    forward_experts: Callable[..., None]
    backward_experts: Callable[..., None]
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


def _call(function: Callable[..., None], counts: list[int], tensors: Forward | Backward, w2_EDF: Tensor) -> None:
    starts = (ctypes.c_int64 * (len(counts) + 1))(0, *accumulate(counts))
    pointers = [tensor if tensor is None else tensor.data_ptr() for tensor in tensors]
    _, hidden, intermediate = w2_EDF.shape
    for_parts(lambda part: function(part.start, part.stop, starts, hidden, intermediate, *pointers), counts)


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
    library = _library()
    if library is None or not hasattr(library, f"swiglu_forward_{suffix}"):
        return None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    forward, backward = (getattr(library, f"swiglu_{which}_{suffix}") for which in ("forward", "backward"))
    for function, num_tensors in ((forward, 5), (backward, 8)):
        function.argtypes = [number, number, pointer, number, number, *[pointer] * num_tensors]
        function.restype = None
    advise = library.advise_huge_pages
    advise.argtypes, advise.restype = [pointer, number], None
    return KernelBlocks(forward, backward, advise)


@cache
def _library() -> ctypes.CDLL | None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        return ctypes.CDLL(str(compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("%s cannot be had; PyTorch computes the experts, in up to 3 times the time: %s", SOURCE, reason)
        return None


def compiled() -> Path:
    """The library's file, compiled now unless it was before.

    Raises:
        OSError: there is no compiler, or the cache directory cannot be written.
        subprocess.SubprocessError: the compiler failed or took too long.
    """
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or shutil.which("clang++") or "g++")
    path = cache_directory() / f"swiglu-{_identity(compiler)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            built = Path(directory) / path.name
            _run([*compiler, *FLAGS, str(SOURCE), "-o", str(built)])
            built.replace(path)
    return path


def cache_directory() -> Path:
    """Where compiled kernels are kept: `sleddog` below `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sleddog"


def _identity(compiler: list[str]) -> str:
    """Hash of source, flags, compiler and processor."""
    parts = [SOURCE.read_text(), " ".join(FLAGS), _run([*compiler, "--version"]), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Its name and abilities, which `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:  # no Linux
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=COMPILE_TIMEOUT_S).stdout  # noqa: S603
