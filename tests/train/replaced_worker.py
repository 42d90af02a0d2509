"""A worker of one process that does little but tell its steps and save them, for the tests of who may write.

Events, checkpoints and the fence are the product's; the weights are five numbers, and a step takes ten milliseconds.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

import ray_jobs.train.checkpoint_writer as module
from ray_jobs.fence import Fence
from ray_jobs.run_directory import CHECKPOINTS_DIRECTORY, EventWriter, RunDirectory
from ray_jobs.train.checkpoint import Snapshot, TrainingState, read_manifest
from ray_jobs.train.checkpoint_writer import CheckpointWriter
from ray_jobs.train.resume import checkpoints_newest_first
from service.errors import SupersededError

STEP_S, CHECKPOINT_EVERY_STEPS = 0.01, 10
WEIGHTS = Snapshot({"master/w@0": torch.arange(5.0)}, [("w", 0, 5)])


def newest_state(run: RunDirectory) -> TrainingState:
    for checkpoint in checkpoints_newest_first(run.join(CHECKPOINTS_DIRECTORY)):
        if (manifest := read_manifest(checkpoint)) is not None:
            return manifest.state
    return TrainingState()


def train(run: RunDirectory, fence: Fence, num_steps: int) -> None:
    url, engine, state = run.join(CHECKPOINTS_DIRECTORY), SimpleNamespace(device="cpu"), newest_state(run)
    last = state.step + num_steps
    with (
        EventWriter(run, "worker0", 1, flush_interval_s=0.05, fence=fence) as events,
        closing(CheckpointWriter(engine, url, 1, 2, 60.0, fence=fence)) as writer,  # type: ignore[arg-type]
    ):
        events.emit("train.started", stage="train", start_step=state.step)
        while state.step < last:
            time.sleep(STEP_S)
            state = state.after(skipped=False)
            events.emit("train.step", stage="train", step=state.step)
            writer.advance()
            if state.step % CHECKPOINT_EVERY_STEPS == 0:
                writer.begin(state, {})
        writer.finish()


def work(run_url: str, start: int, num_steps: int, *, is_fenced: bool) -> None:
    """In a process of its own; leaves `ended-<start>` with the reason."""
    run = RunDirectory(run_url)
    fence: Any = Fence(run, 1, start) if is_fenced else SimpleNamespace(check=lambda: None)
    module.take_snapshot = lambda _engine: WEIGHTS
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    reason = "all steps are done"
    try:
        train(run, fence, num_steps)
    except SupersededError as error:
        reason = str(error)
    (Path(run_url) / f"ended-{start}").write_text(reason)
