"""A short real training run on any number of gloo processes, for the parity tests; run by `torch.distributed.run`.

    parallel_run.py OUT EXPERT_PARALLEL STEPS [--resume] [--precision bf16] [--freeze] [--normalise-per-worker]

Leaves in OUT: a checkpoint after every second step, and `result-<rank>.json` with losses, norms and weight hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import numpy as np
import torch
import torch.distributed as dist

from moe.config import MoEConfig
from moe.freeze import freeze_moe
from moe.hf import checkpoint_slices
from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import RowOrder, collate, share_of_worker
from ray_jobs.train.checkpoint import load_checkpoint, save_checkpoint
from ray_jobs.train.engine import TrainingStep, all_reduce_sum, build_engine, expert_parallel_group
from ray_jobs.train.metrics import StepSums
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
NUM_ROWS, BATCH_ROWS = 14, 4


def job_spec(options: argparse.Namespace, num_workers: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "parity",
            "model": {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe"}},
            "data": {"sources": [{"name": "a", "category": "c", "uri": "file:///a.jsonl", "form": "messages"}]},
            "train": {
                "global_batch_rows": BATCH_ROWS,
                "precision": options.precision,
                "learning_rate": 1e-2,
                "weight_decay": 0.1,
                "gradient_clip_norm": 0.2,
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("expert_parallel", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--normalise-per-worker", action="store_true", help="the mutation that a parity test must see")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    model = HybridModel(CONFIG, expert_parallel_group(options.expert_parallel))
    initialize(model, seed=0)
    experts_before = {key: tensor.clone() for key, tensor in checkpoint_slices(model) if ".experts." in key}
    if options.freeze:
        freeze_moe(model)
    engine = build_engine(TrainingStep(model, 0.01, 1), job_spec(options, num_workers))
    rows, order = packed_rows(), RowOrder(NUM_ROWS, 2, BATCH_ROWS, seed=3)
    start = load_checkpoint(engine, options.out) if options.resume else 0
    losses, norms, balances = [], [], []
    for step in range(start, options.steps):
        mine = share_of_worker(order.rows_of_step(step), rank, num_workers)
        batches = [collate([None if index is None else rows[index]], ["c"], "cpu") for index in mine]
        totals = torch.tensor([sum(b.num_trained for b in batches), sum(b.num_tokens for b in batches)]).double()
        local_trained = float(totals[0])
        trained, tokens = all_reduce_sum(totals).tolist()
        if options.normalise_per_worker:
            trained = local_trained * num_workers
        vector = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            loss, sums = engine(batch, trained, tokens)
            engine.backward(loss, scale_wrt_gas=False)
            engine.step()
            vector = vector + sums
        described = StepSums.from_vector(all_reduce_sum(vector), 1, CONFIG).describe(["c"], tokens, 0.01)
        losses.append(described["loss"])
        balances.append(described["balance_loss"])
        norms.append(float(engine.get_global_grad_norm()))
        if not options.resume and step % 2 == 1:
            save_checkpoint(engine, options.out, step + 1)
    frozen_experts = all(
        torch.equal(tensor.float(), experts_before[key].to(tensor.dtype).float())
        for key, tensor in checkpoint_slices(model)
        if key in experts_before
    )
    result = {
        "start": start,
        "losses": losses,
        "norms": norms,
        "balances": balances,
        "hash": weight_hash(model),
        "experts_unchanged": frozen_experts,
    }
    (options.out / f"result-{rank}.json").write_text(json.dumps(result))
    dense = {key: tensor.clone() for key, tensor in checkpoint_slices(model)}
    torch.save(dense, options.out / f"weights-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
