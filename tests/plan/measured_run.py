"""One real training step on two gloo processes, measured.

Leaves for each process `measured-<rank>.json` with bytes by part.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import collate
from ray_jobs.train.checkpoint import MOMENTS
from ray_jobs.train.engine import TrainingStep, build_engine, expert_parallel_group
from ray_jobs.train.step import take_step
from service.plan.layout import planned_config
from service.spec.job import JobSpec
from tests.moe.kept import bytes_kept


def full_row(length: int, vocab_size: int, seed: int) -> PackedRow:
    """One document, all of it trained but its first token."""
    trained = np.arange(length) > 0
    tokens = np.random.default_rng(seed).integers(0, vocab_size, length).astype(np.int32)
    return PackedRow(tokens, trained, np.array([length], dtype=np.int32), ("c",))


def watch_step(engine: Any, measured: dict[str, int]) -> None:
    """Note the accumulated gradient and the buckets while they are there."""
    take, release = engine.optimizer.step, engine.optimizer._release_ipg_buffers

    def step() -> None:
        groups = engine.optimizer.averaged_gradients.values()
        measured["gradients"] = sum(gradient.nbytes for group in groups for gradient in group)
        take()

    def note_buckets() -> None:
        buffers = [buffer for bucket in engine.optimizer.ipg_buckets.values() for buffer in bucket.buffer]
        measured["buckets"] = sum(buffer.nbytes for buffer in buffers)
        release()

    engine.optimizer.step, engine.optimizer._release_ipg_buffers = step, note_buckets


def work(rank: int, document: str, out: Path) -> None:
    """One of the processes, of a job's spec in JSON."""
    spec = JobSpec.model_validate_json(document)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    config = planned_config(spec)
    parallel = expert_parallel_group(spec.parallel.expert_parallel_size)
    model = HybridModel(config, parallel, activation_checkpointing=spec.train.activation_checkpointing)
    initialize(model, seed=0)
    engine = build_engine(TrainingStep(model, 0.01, 1), spec)
    batch = collate([full_row(spec.data.sequence_length, config.vocab_size, rank)], ["c"], "cpu")
    measured = {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "activations": bytes_kept(model, lambda: engine.module(batch, 1.0, 1.0)),
    }
    watch_step(engine, measured)
    take_step(engine, [batch], 1e-3, 1)
    states = engine.optimizer.optimizer.state.values()
    moments = sum(state[kind].nbytes for state in states for kind in MOMENTS)
    masters = sum(partition.nbytes for partition in engine.optimizer.single_partition_of_fp32_groups)
    measured["optimiser"] = moments + masters
    (out / f"measured-{rank}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()
