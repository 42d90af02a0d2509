"""Held-out loss and routing per category, on rows that no training step ever sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from ray_jobs.data.packed_rows import PackedRows
from ray_jobs.evaluate.mode import evaluating
from ray_jobs.evaluate.routing_record import HeldOutRouting, RoutingRecord
from ray_jobs.train.batches import collate
from ray_jobs.train.engine import TrainingStep, all_reduce_sum
from ray_jobs.train.metrics import StepSums
from ray_jobs.train.pinned_routing import recorded_routing


@torch.no_grad()
def measure_held_out(
    step: TrainingStep, rows: PackedRows, categories: Sequence[str]
) -> tuple[dict[str, float], HeldOutRouting]:
    """Nats per trained token by category, and where the tokens go; all workers must call, and all get the same.

    The rows are dealt out to the workers in turn. One that runs out of rows goes on with empty ones, since its experts
    serve the others.

    Args:
        step: the model and its loss; not modified.
        rows: held-out rows.
        categories: names, in the order of their indices.
    """
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    routing = RoutingRecord(step.model, len(categories), len(rows))
    device = step.model.lm_head.weight.device
    total = torch.zeros(0, dtype=torch.float64)
    for turn in range(math.ceil(len(rows) / num_workers)):
        index = turn * num_workers + rank
        batch = collate([rows[index] if index < len(rows) else None], categories, device)
        with evaluating(step), recorded_routing(step.model) as choices:
            _, sums = step(batch, 1.0, 1.0)
        routing.add(index, batch, choices)
        total = sums if turn == 0 else total + sums
    if not len(rows):
        return {}, routing.gather()
    sums_of_all = StepSums.from_vector(all_reduce_sum(total), len(categories), step.model.config)
    return sums_of_all.loss_by_category(categories), routing.gather()
