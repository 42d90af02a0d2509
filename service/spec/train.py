"""How a job trains: every default is the recipe's value."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from moe.config import Tuning
from service.spec.base import SpecModel, conflict

LOGITS_AT_ONCE = 1 << 26
"""The loss is taken from so many logits at a time: 256 MiB in fp32, 1,300 positions of a vocabulary of 50,000 words;
4,096 of 32,000 are two parts."""


class TrainSpec(SpecModel):
    """Supervised fine-tuning of all weights unless `tuning` says otherwise, loss on completion tokens only."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from 0."""
    schedule: Literal["cosine"] = "cosine"
    """Decay after the warm-up, to 0 at the last step."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the packed rows, each in its own order."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimiser steps; the schedule is laid over them."""
    global_batch_rows: int = Field(default=256, ge=1)
    """Packed rows in one optimiser step, over all workers."""
    micro_batch_rows: int = Field(default=1, ge=1)
    """Packed rows in one forward pass of one worker."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """AdamW's denominator term."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices; norms are never decayed."""
    gradient_clip_norm: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the whole gradient, dense and expert parts together."""
    balance_loss_coefficient: float = Field(default=0.01, ge=0)
    """k of the load-balancing loss: a layer's loss at perfect balance."""
    balance_loss_unit: Literal["row", "batch"] = "row"
    """What the load-balancing loss is taken over: each packed row by itself, or the rows of a forward pass on all
    workers. The latter lets rows make up for each other, and depends on the number of workers."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """Room of an expert in training, as a multiple of an even share of a packed row's token copies, rounded up: what
    comes when it is full is dropped. By default there is room for all."""
    tuning: Tuning = "full"
    """What is trained. `frozen_moe` is the dense part, with every router and expert frozen: cheaper, for ablations over
    data mixes. `router_only` is the routers, with all else frozen."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, which computes the layer anew. In bf16 that keeps 2 bytes a
    token, layer and unit of hidden size instead of 36, so 2 GB instead of 37 for 4096 tokens of Arctic, beside the one
    layer at work: Arctic at the recipe's scale needs it. A step takes 1.3 to 1.4 times as long, for one more forward
    pass; gradients stay the same."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the forward and backward pass; the optimiser's master weights are fp32 in both."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Optimiser steps in a row that may be skipped, for a NaN or infinite gradient, before the job fails."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints; the last step always writes one. One that is due while the one before is
    still being written is left out."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay."""
    checkpoint_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that a storage which fails or is slow may take for a checkpoint, beside the training, before the workers
    start again from the last one."""

    proofs: bool = True
    """Prove on a few rows, before the first step of each start, that balance loss and gradient do not depend on how
    rows are dealt out, that packed documents do not see each other, and that no row comes twice or never. Takes the
    time of about 20 forward passes of 512 tokens on each worker; a failed proof ends the job."""

    def num_steps(self, num_rows: int) -> int:
        """Optimiser steps of a whole run: every row once an epoch, the last batch filled up with empty rows.

        Args:
            num_rows: packed rows of an epoch.
        """
        steps = math.ceil(num_rows * self.epochs / self.global_batch_rows)
        return min(steps, self.max_steps) if self.max_steps else steps

    @model_validator(mode="after")
    def _betas_in_range(self) -> TrainSpec:
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise conflict("adam_betas", "both must lie in [0, 1)")
        return self


class ParallelSpec(SpecModel):
    """How many processes train, and how they share the experts. Data parallelism is what remains."""

    num_workers: int = Field(default=1, ge=1)
    """Training processes: one a GPU, or one a CPU group where the cluster has no GPU."""
    expert_parallel_size: int = Field(default=1, ge=1)
    """Workers that share one set of experts; divides `num_workers` and the number of experts."""
    min_workers: int | None = Field(default=None, ge=1)
    """Fewest workers to go on with when the cluster has no room for all: then the most that divide the batch and that
    `expert_parallel_size` divides take part, and each accumulates more rows. By default all are waited for."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """`auto` takes GPUs when the cluster has any."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPU cores that Ray reserves for a worker; also its compute threads on CPU, rounded down, at least 1."""
    max_worker_failures: int = Field(default=3, ge=0)
    """Failures of workers, nodes or the storage that are answered by a restart from the last checkpoint before the job
    fails. What a restart cannot mend is never tried again: an invalid spec, bad data, a diverged loss."""
    placement_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that the cluster may take to place all workers before the job fails."""

    @model_validator(mode="after")
    def _experts_divide_workers(self) -> ParallelSpec:
        if self.num_workers % self.expert_parallel_size:
            raise conflict("expert_parallel_size", f"does not divide `num_workers` {self.num_workers}")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise conflict("min_workers", f"is more than `num_workers` {self.num_workers}")
        return self
