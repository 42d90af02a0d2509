"""The recipe's learning-rate schedule."""

from __future__ import annotations

import math
from decimal import Decimal

from service.spec.train import TrainSpec


def num_warmup_steps(total_steps: int, spec: TrainSpec) -> int:
    """Steps of the linear rise, rounded up; in decimals, since 100 x 0.07 is 7.000000000000001 in binary."""
    return math.ceil(total_steps * Decimal(str(spec.warmup_fraction)))


def learning_rate(step: int, total_steps: int, spec: TrainSpec) -> float:
    """Rate of a step: linear warm-up to the peak, then a cosine that would reach 0 one step after the last.

    Args:
        step: 0-based.
        total_steps: of the whole run.
        spec: peak and warm-up share.
    """
    warmup = num_warmup_steps(total_steps, spec)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
