"""One optimiser step over the micro-batches of all workers: the only place that drives the engine.

The loss of a micro-batch is divided by the counts of the GLOBAL batch, so they are added up first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moe.operations import Operations
from ray_jobs.train.batches import TrainBatch
from ray_jobs.train.engine import GradientNorms, all_reduce_sum, alone_among_workers, gradient_norms
from ray_jobs.train.metrics import StepSums
from ray_jobs.train.phases import Phases, peak_memory_bytes
from ray_jobs.train.utilisation import StepOperations

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
        operations: floating-point operations of the global batch.
        memory_bytes: most that any worker had in use.
        phases: seconds of this worker, by metric; the only thing that differs between workers.
    """

    sums: StepSums
    num_tokens: float
    norms: GradientNorms
    is_skipped: bool
    operations: StepOperations
    memory_bytes: int
    phases: dict[str, float]

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
            "model_flops": self.operations.done,
            "model_flops_unfrozen": self.operations.unfrozen,
            "memory_bytes": self.memory_bytes,
            **self.phases,
            **self.sums.describe(categories, self.num_tokens, balance_loss_coefficient),
        }

    @property
    def gradient_norm(self) -> float:
        """L2, dense and expert parts together, before clipping."""
        return math.hypot(self.norms.dense, self.norms.expert)


@dataclass(frozen=True)
class GlobalCounts:
    """Of the global batch.

    Attributes:
        trained: targets of the loss.
        tokens: real tokens.
        attended: pairs of a token and one that it sees.
    """

    trained: float
    tokens: float
    attended: float


def global_counts(batches: Sequence[TrainBatch], device: torch.device | str) -> GlobalCounts:
    """Add up the counts of the global batch; all workers must call.

    Args:
        batches: this worker's.
        device: where the workers communicate.
    """
    counts = [[batch.num_trained, batch.num_tokens, batch.num_attended] for batch in batches]
    sums = torch.tensor(counts, dtype=torch.float64).sum(0).to(device)
    return GlobalCounts(*all_reduce_sum(sums).tolist())


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
    phases, model = Phases(engine.device), engine.module.model
    counts = global_counts(batches, engine.device)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    vector = torch.zeros((), dtype=torch.float64, device=engine.device)
    for batch in batches:
        with phases.measure("forward"):
            loss, sums = engine(batch, counts.trained, counts.tokens)
        with phases.measure("backward"):
            engine.backward(loss, scale_wrt_gas=False)
        with phases.measure("optimizer"):
            if engine.is_gradient_accumulation_boundary():
                norms = gradient_norms(engine)
            engine.step()
        vector = vector + sums
    memory_W = alone_among_workers(peak_memory_bytes(engine.device), engine.device)
    vector, memory_W = all_reduce_sum(torch.cat([vector, memory_W])).split([len(vector), len(memory_W)])
    sums_of_all = StepSums.from_vector(vector, num_categories, model.config)
    forward = Operations.of(
        model.config,
        tokens=counts.tokens,
        attended=counts.attended,
        trained=counts.trained,
        copies=sums_of_all.num_copies_taken,
    )
    return TakenStep(
        sums_of_all,
        counts.tokens,
        norms,
        is_skipped=bool(engine.optimizer.overflow),
        operations=StepOperations.of(model, forward),
        memory_bytes=int(memory_W.max()),
        phases=phases.describe(),
    )
