"""How much of the processors' peak a step uses: model FLOPs utilisation (MFU), and what frozen parts save.

The operations are those that the step's real tokens need (`moe.operations`), over the whole global batch; the peak is
that of all workers together. On a GPU it is the data sheet's. A CPU has none that could be relied on, so each worker
measures it at its start, on its own threads while the others do the same: the fastest product of square matrices, of
the three layouts that a linear map and its two gradients have. PyTorch is slow with some of them in bf16 where the
processor has no such numbers, so a kernel that converts them itself may exceed the peak measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from moe.experts import Experts
from moe.model import HybridModel
from moe.operations import Operations, TrainedParts
from moe.router import Router
from service.spec.ownership import GRADIENT_BYTES, OPTIMISER_BYTES, num_owned
from service.spec.plan import DEVICE_NAMES, peak_flops
from service.spec.train import TrainSpec

_SMALLEST, _LARGEST = 256, 1024
_QUICK_S = 0.03
"""A larger product is tried when one takes less."""
_TRY_S = 0.05
"""So long products of a size are repeated, twice at least: on a busy machine few are undisturbed."""


@dataclass(frozen=True)
class StepOperations:
    """Floating-point operations of a step, over all workers.

    Attributes:
        done: that the model needs as it is trained.
        unfrozen: that it would need if all of it was trained.
    """

    done: float
    unfrozen: float

    @classmethod
    def of(cls, model: HybridModel, forward: Operations) -> StepOperations:
        """From those of the forward pass."""
        return cls(forward.training(trained_parts(model)), forward.training(TrainedParts()))


def trained_parts(model: HybridModel) -> TrainedParts:
    """Which weights of a model are trained."""

    def is_trained(kind: type[nn.Module]) -> bool:
        modules = (module for module in model.modules() if isinstance(module, kind))
        return any(weight.requires_grad for module in modules for weight in module.parameters())

    return TrainedParts(model.lm_head.weight.requires_grad, is_trained(Router), is_trained(Experts))


def frozen_bytes(model: HybridModel, num_workers: int) -> int:
    """Gradients, master weights and moments that one worker would own if nothing was frozen, beside what it owns.

    Args:
        model: this worker's.
        num_workers: of the run.
    """
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    num_expert = sum(weight.numel() for one in experts for weight in one.parameters() if not weight.requires_grad)
    num_frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    owned = num_owned(num_frozen - num_expert, num_expert, num_workers, model.parallel.size)
    return (GRADIENT_BYTES + OPTIMISER_BYTES) * owned


def worker_peak_flops(device: torch.device, spec: TrainSpec) -> float | None:
    """Operations a second that a worker can do at the most; None for a GPU whose data sheet is not known.

    Args:
        device: the worker's.
        spec: says in which precision.
    """
    if device.type == "cuda":
        name = DEVICE_NAMES.get(torch.cuda.get_device_name(device))
        return None if name is None else peak_flops(name, spec.precision)
    return measured_peak_flops(torch.bfloat16 if spec.precision == "bf16" else torch.float32)


def measured_peak_flops(dtype: torch.dtype) -> float:
    """Operations a second of the fastest product, on this process's threads; takes some tenths of a second."""
    return max(_rate(dtype, *transposed) for transposed in ((False, True), (False, False), (True, False)))


def _rate(dtype: torch.dtype, first_transposed: bool, second_transposed: bool) -> float:
    size, best = _SMALLEST, 0.0
    while True:
        first, second = torch.ones(2, size, size, dtype=dtype)
        first, second = first.T if first_transposed else first, second.T if second_transposed else second
        seconds = _fastest_s(first, second)
        best = max(best, 2 * size**3 / seconds)
        if seconds > _QUICK_S or size == _LARGEST:
            return best
        size *= 2


def _fastest_s(first: torch.Tensor, second: torch.Tensor) -> float:
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < _TRY_S:
        start = time.perf_counter()
        torch.mm(first, second)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
