"""One optimiser step over the micro-batches of all workers: the only place that drives the engine.

The loss of a micro-batch is divided by the counts of the GLOBAL batch, so they are added up first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ray_jobs.train.batches import TrainBatch
from ray_jobs.train.engine import GradientNorms, all_reduce_sum, gradient_norms
from ray_jobs.train.metrics import StepSums

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class TakenStep:
    """What a step says of itself; the same on all workers.

    Attributes:
        sums: of the global batch.
        num_tokens: real tokens of the global batch.
        norms: of the gradient.
        is_skipped: the gradient is not finite, so weights and optimiser are what they were.
    """

    sums: StepSums
    num_tokens: float
    norms: GradientNorms
    is_skipped: bool

    def describe(self, categories: Sequence[str], balance_loss_coefficient: float) -> dict[str, object]:
        """The metrics of a `train.step` event that do not come from the clock.

        Args:
            categories: names, in the order of their indices.
            balance_loss_coefficient: k.
        """
        return {
            "gradient_norm": self.gradient_norm,
            "gradient_norm_dense": self.norms.dense,
            "gradient_norm_expert": self.norms.expert,
            "is_skipped": self.is_skipped,
            **self.sums.describe(categories, self.num_tokens, balance_loss_coefficient),
        }

    @property
    def gradient_norm(self) -> float:
        """L2, dense and expert parts together, before clipping."""
        return math.hypot(self.norms.dense, self.norms.expert)


def global_counts(batches: Sequence[TrainBatch], device: torch.device | str) -> tuple[float, float]:
    """Trained tokens and all tokens of the global batch; all workers must call.

    Args:
        batches: this worker's.
        device: where the workers communicate.
    """
    counts = [sum(batch.num_trained for batch in batches), sum(batch.num_tokens for batch in batches)]
    trained, tokens = all_reduce_sum(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()
    return trained, tokens


def take_step(
    engine: DeepSpeedEngine, batches: Sequence[TrainBatch], learning_rate: float, num_categories: int
) -> TakenStep:
    """Update the weights once; all workers must call, each with equally many micro-batches.

    Args:
        engine: drives a `TrainingStep`.
        batches: this worker's share, as many as the engine accumulates.
        learning_rate: of this step.
        num_categories: C of the sums by category.
    """
    trained, tokens = global_counts(batches, engine.device)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    vector = torch.zeros((), dtype=torch.float64, device=engine.device)
    for batch in batches:
        loss, sums = engine(batch, trained, tokens)
        engine.backward(loss, scale_wrt_gas=False)
        if engine.is_gradient_accumulation_boundary():
            norms = gradient_norms(engine)
        engine.step()
        vector = vector + sums
    sums_of_all = StepSums.from_vector(all_reduce_sum(vector), num_categories, engine.module.model.config)
    return TakenStep(sums_of_all, tokens, norms, is_skipped=bool(engine.optimizer.overflow))
