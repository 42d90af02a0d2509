"""Held-out loss per category, on rows that no training step ever sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from ray_jobs.data.packed_rows import PackedRows
from ray_jobs.evaluate.mode import evaluating
from ray_jobs.train.batches import collate
from ray_jobs.train.engine import TrainingStep, all_reduce_sum
from ray_jobs.train.metrics import StepSums


@torch.no_grad()
def held_out_losses(step: TrainingStep, rows: PackedRows, categories: Sequence[str]) -> dict[str, float]:
    """Nats per trained token by category; all workers must call, and all get the same.

    The rows are dealt out to the workers in turn. One that runs out of rows goes on with empty ones, since its experts
    serve the others.

    Args:
        step: the model and its loss; not modified.
        rows: held-out rows.
        categories: names, in the order of their indices.
    """
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    device = step.model.lm_head.weight.device
    total = torch.zeros(0, dtype=torch.float64)
    for turn in range(math.ceil(len(rows) / num_workers)):
        index = turn * num_workers + rank
        batch = collate([rows[index] if index < len(rows) else None], categories, device)
        with evaluating(step):
            _, sums = step(batch, 1.0, 1.0)
        total = sums if turn == 0 else total + sums
    if not len(rows):
        return {}
    sums_of_all = StepSums.from_vector(all_reduce_sum(total), len(categories), step.model.config)
    return sums_of_all.loss_by_category(categories)
