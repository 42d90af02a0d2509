"""A short real training run on any number of gloo processes, for the parity tests.

    OUT EXPERT_PARALLEL STEPS [--batch-rows N] [--precision bf16] [--gradients] [--normalise-per-worker]
                              [--break-step STEP]

Resumes from the newest checkpoint below OUT. Leaves in OUT: a checkpoint after every second step, weights, with
`--gradients` those of the last step, and `result-<rank>.json` with losses, norms and weight hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from moe.config import MoEConfig
from moe.hf import checkpoint_slices
from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.fence import Fence
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train import step as step_module
from ray_jobs.train.batches import RowOrder, TrainBatch, collate, share_of_worker
from ray_jobs.train.checkpoint_writer import CheckpointWriter
from ray_jobs.train.cursor import data_cursor
from ray_jobs.train.engine import TrainingStep, build_engine, expert_parallel_group
from ray_jobs.train.phases import peak_memory_bytes
from ray_jobs.train.resume import resume
from service.spec.job import JobSpec

CONFIG = MoEConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    expert_intermediate_size=12,
    num_experts=4,
)
NUM_ROWS = 14
STEPS_KEPT = 10
LEARNING_RATE, ADAM_EPS, CLIP_NORM, WEIGHT_DECAY = 1e-2, 1e-2, 0.2, 0.1
BALLAST = 100_000_000
"""Bytes that each worker holds more than the one before it, so that their memory differs."""


def job_spec(options: argparse.Namespace, num_workers: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "parity",
            "model": {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe"}},
            "data": {"sources": [{"name": "a", "category": "c", "uri": "file:///a.jsonl", "form": "messages"}]},
            "train": {
                "global_batch_rows": options.batch_rows,
                "precision": options.precision,
                "learning_rate": LEARNING_RATE,
                "adam_eps": ADAM_EPS,
                "weight_decay": WEIGHT_DECAY,
                "gradient_clip_norm": CLIP_NORM,
            },
            "parallel": {"num_workers": num_workers, "expert_parallel_size": options.expert_parallel},
        }
    )


def packed_rows() -> list[PackedRow]:
    """Rows whose trained tokens differ widely, so that a wrong normalisation shows."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(NUM_ROWS):
        lengths = rng.integers(4, 40, 3).astype(np.int32)
        trained = rng.random(lengths.sum()) < (index + 1) / NUM_ROWS
        trained[np.cumsum(lengths) - lengths] = False
        rows.append(PackedRow(rng.integers(0, 50, lengths.sum()).astype(np.int32), trained, lengths, ("c",) * 3))
    return rows


def weight_hash(model: HybridModel) -> str:
    weights = sorted((key, tensor) for key, tensor in checkpoint_slices(model))
    return hashlib.sha256(b"".join(tensor.float().numpy().tobytes() for _, tensor in weights)).hexdigest()


def keep_gradients(engine: Any, gradients: dict[str, torch.Tensor]) -> None:
    """Note the accumulated gradient of every step, before it is clipped."""
    from deepspeed.utils import safe_get_full_grad

    take = engine.step

    def step() -> None:
        if engine.is_gradient_accumulation_boundary():
            gradients.update({n: safe_get_full_grad(p).clone() for n, p in engine.module.model.named_parameters()})
        take()

    engine.step = step


def gradients_apart(step: TrainingStep, batches: list[TrainBatch]) -> Iterator[dict[str, torch.Tensor]]:
    """Each micro-batch's gradient alone, in fp64."""
    counts = step_module.global_counts(batches, "cpu")
    for batch in batches:
        step.zero_grad(set_to_none=True)
        step(batch, counts.trained, counts.tokens)[0].backward()
        yield {name: parameter.grad.double() for name, parameter in step.model.named_parameters()}


def normalise_per_worker() -> None:
    global_counts = step_module.global_counts

    def local_counts(batches: list[TrainBatch], device: str) -> step_module.GlobalCounts:
        trained = sum(batch.num_trained for batch in batches) * dist.get_world_size()
        return replace(global_counts(batches, device), trained=trained)

    step_module.global_counts = local_counts


def _spoil(_module: Any, _arguments: Any, outputs: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
    return outputs[0] * (math.inf if dist.get_rank() == 0 else 1.0), outputs[1]


def work(rank: int, num_workers: int, arguments: list[str]) -> None:
    """One of the processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("expert_parallel", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--batch-rows", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--normalise-per-worker", action="store_true", help="the mutation that a parity test must see")
    parser.add_argument("--break-step", type=int, help="at which worker 0's activations become infinite")
    options = parser.parse_args(arguments)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{options.out}/store", rank=rank, world_size=num_workers)
    model = HybridModel(CONFIG, expert_parallel_group(options.expert_parallel))
    initialize(model, seed=0)
    if options.normalise_per_worker:
        normalise_per_worker()
    copy = TrainingStep(deepcopy(model), 0.01, 1).bfloat16() if options.gradients else None
    engine = build_engine(TrainingStep(model, 0.01, 1), job_spec(options, num_workers))
    epochs = max(2, math.ceil(options.steps * options.batch_rows / NUM_ROWS))
    rows, order = packed_rows(), RowOrder(NUM_ROWS, epochs, options.batch_rows, seed=3)
    url = str(options.out / "checkpoints")
    state = resume(engine, url).state
    start = state.step
    _ballast = b"1" * (rank * BALLAST)
    fence = Fence(RunDirectory(str(options.out)), 1, 1)
    writer = CheckpointWriter(engine, url, attempt=1, num_kept=STEPS_KEPT, timeout_s=60, fence=fence)
    losses, norms, balances, gradients = [], [], [], {}
    norms_by_deepspeed, skipped, hash_before_break = [], [], None
    for step in range(start, options.steps):
        mine = share_of_worker(order.rows_of_step(step), rank, num_workers)
        batches = [collate([None if index is None else rows[index]], ["c"], "cpu") for index in mine]
        if copy is not None:
            keep_gradients(engine, gradients)
            torch.save(list(gradients_apart(copy, batches)), options.out / "gradients-apart.pt")
        if step == options.break_step:
            hash_before_break = weight_hash(model)
            spoiled = model.layers[0].register_forward_hook(_spoil)
        start_s = time.perf_counter()
        taken = step_module.take_step(engine, batches, LEARNING_RATE, 1)
        step_s = time.perf_counter() - start_s
        if step == options.break_step:
            spoiled.remove()
        described = taken.describe(["c"], 0.01)
        losses.append(described["loss"])
        balances.append(described["balance_loss"])
        norms.append(taken.gradient_norm)
        norms_by_deepspeed.append(float(engine.get_global_grad_norm()))
        skipped.append(taken.is_skipped)
        state = state.after(skipped=taken.is_skipped)
        if (step + 1) % 2 == 0:
            assert writer.begin(state, data_cursor(order, state.step))
            writer.finish()
    writer.close()
    result = {
        "start": start,
        "losses": losses,
        "norms": norms,
        "norms_by_deepspeed": norms_by_deepspeed,
        "skipped": skipped,
        "hash_before_break": hash_before_break,
        "updates": state.updates,
        "balances": balances,
        "hash": weight_hash(model),
        "has_compiler": "torch._inductor.compile_fx" in sys.modules,
        "last_step": described | {"step_s": step_s, "peak_memory_bytes": peak_memory_bytes("cpu")},
    }
    (options.out / f"result-{rank}.json").write_text(json.dumps(result))
    torch.save(gradients, options.out / "gradients.pt")
    dense = {key: tensor.clone() for key, tensor in checkpoint_slices(model)}
    torch.save(dense, options.out / f"weights-{rank}.pt")
    dist.destroy_process_group()
