"""The job's own loop beside a bare one: what events, metrics, guards, reading of rows and checkpoints add to a step.

    python benchmarks/train/step_overhead.py examples/quickstart.yaml [--steps 25] [--rounds 6]

The data is prepared and the workers are started as a job does it. Then the same processes take blocks of steps in turn,
on the same engine, so that model, weights and machine are the same for both:
    job   `Worker.train`, with all that a job does while it trains; each block ends with a checkpoint, and waits until
          it is written
    bare  forward, loss, backward, step, on the same rows, which lie in memory; the counts of the global batch are all
          that is told between workers beside what DeepSpeed and the experts exchange
Seconds are those of a whole block. Processor seconds, of all threads of all workers, say the same under other load.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import ray
import torch
import torch.distributed as dist

from ray_jobs.data.prepare import prepare
from ray_jobs.run_directory import SPEC_FILE, RunDirectory
from ray_jobs.train import trainer
from ray_jobs.train.batches import TrainBatch
from ray_jobs.train.checkpoint import TrainingState
from ray_jobs.train.loop import Worker, WorkerConfig, run_worker
from ray_jobs.train.loss import completion_loss
from ray_jobs.train.step import global_counts
from service.client.spec_file import load_spec

RESULT_FILE = "overhead.json"
WARM_UP_STEPS = 5
KINDS = ("job", "bare")
Cost = tuple[float, float]
"""Seconds, and processor seconds of all workers, a step."""


class Alternation:
    """Blocks of steps of one worker, which all take together."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._step = worker, 0
        worker._announce_workers(0)  # noqa: SLF001  measures the peak that utilisation is told against

    def round(self, kinds: Sequence[str], steps: int) -> dict[str, Cost]:
        """A block of each kind, in this order, on the same rows: the job's, which follow from the engine's steps."""
        first = self._step + kinds.index("job") * steps
        self._step += len(kinds) * steps
        batches = [self._worker._micro_batches(step) for step in range(first, first + steps)]  # noqa: SLF001
        return {kind: self._cost(kind, first, batches) for kind in kinds}

    def _cost(self, kind: str, first: int, batches: list[list[TrainBatch]]) -> Cost:
        dist.barrier()
        start, start_cpu = time.perf_counter(), time.process_time()
        if kind == "job":
            self._worker.total_steps = first + len(batches)
            self._worker.train(TrainingState(first, first))
        else:
            for of_step in batches:
                self._bare_step(of_step)
        taken_s = time.perf_counter() - start
        cpu_s = torch.tensor(time.process_time() - start_cpu, dtype=torch.float64)
        dist.all_reduce(cpu_s)
        return taken_s / len(batches), float(cpu_s) / len(batches)

    def _bare_step(self, batches: list[TrainBatch]) -> None:
        engine, model = self._worker.engine, self._worker.step_module.model
        counts = global_counts(batches, engine.device)
        for batch in batches:
            hidden_TD, balances = model(batch.packed)
            loss, _ = completion_loss(
                hidden_TD, model.lm_head, batch.packed.tokens_T, batch.trained_T, scale=1 / counts.trained
            )
            balance = torch.stack([layer.loss_sum for layer in balances]).sum() / counts.tokens
            coefficient = self._worker.spec.train.balance_loss_coefficient
            engine.backward(loss + coefficient * balance, scale_wrt_gas=False)
            engine.step()


def measure(config: dict[str, Any], *, steps: int, rounds: int) -> None:
    """In place of a worker's stages: take the blocks; worker 0 writes what they cost."""

    def work(worker: Worker) -> None:
        alternation = Alternation(worker)
        alternation.round(KINDS, WARM_UP_STEPS)
        costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
        for number in range(rounds):
            taken = alternation.round(KINDS if number % 2 == 0 else KINDS[::-1], steps)
            for kind, cost in taken.items():
                costs[kind].append(cost)
        if worker.rank == 0:
            worker.run.write_json(RESULT_FILE, costs)

    with patch.object(Worker, "work", work):
        run_worker(config)


def run(spec_path: Path, directory: Path, steps: int, rounds: int) -> dict[str, list[Cost]]:
    """Prepare, start the workers, and return what each block cost."""
    spec = load_spec(spec_path)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 1000})})  # rows never run out
    job = RunDirectory(str(directory / "job"))
    job.write_json(SPEC_FILE, spec.model_dump(mode="json"))
    prepared = prepare(spec, job.prepared_url, lambda *_: None)
    config = WorkerConfig(
        run_url=job.url,
        attempt=1,
        packed_url=prepared.url,
        tokenizer_url=prepared.tokenizer_url,
        categories=tuple(sorted({source.category for source in spec.data.sources})),
    )

    def blocks(config: dict[str, Any]) -> None:
        measure(config, steps=steps, rounds=rounds)

    with patch.object(trainer, "run_worker", blocks):
        trainer.train(job, spec, config, print)
    costs = job.read_json(RESULT_FILE)
    assert costs is not None
    return costs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--steps", type=int, default=25, help="of a block")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray.init("local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as directory:
        costs = run(options.spec, Path(directory), options.steps, options.rounds)
    print("| steps | s, median of blocks | processor s |\n| --- | --- | --- |")
    for kind in KINDS:
        seconds, cpu_s = (median(values) for values in zip(*costs[kind], strict=True))
        print(f"| {kind} | {seconds:.4f} | {cpu_s:.4f} |")
    for kind in KINDS:
        print(f"{kind}, seconds by round: {' '.join(f'{seconds:.3f}' for seconds, _ in costs[kind])}")
    for name, index in (("seconds", 0), ("processor seconds", 1)):
        ratios = sorted(job[index] / bare[index] for job, bare in zip(costs["job"], costs["bare"], strict=True))
        print(f"{name}, job / bare: median {median(ratios):.4f}, sorted {' '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
