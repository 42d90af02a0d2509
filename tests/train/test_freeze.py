"""The real engine in every mode of tuning: what it holds, what it changes, what its checkpoints bring back.

Four workers, in two expert-parallel groups.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist

from moe.config import MoEConfig, Tuning
from moe.freeze import freeze
from moe.hf import checkpoint_slices
from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.fence import Fence
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.batches import collate, share_of_worker
from ray_jobs.train.checkpoint import MOMENTS, TrainingState, take_snapshot
from ray_jobs.train.checkpoint_writer import CheckpointWriter
from ray_jobs.train.engine import TrainingStep, build_engine, expert_parallel_group
from ray_jobs.train.resume import resume
from ray_jobs.train.step import take_step
from ray_jobs.train.utilisation import frozen_bytes
from tests.moe.test_freeze import TRAINED
from tests.train.conftest import NUM_WORKERS
from tests.train.parallel_run import CONFIG, packed_rows
from tests.train.test_proofs import ORDER, spec_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the four workers start with the first of them

EXPERT_PARALLEL = 2
LEARNING_RATE, ADAM_EPS = 0.1, 1e-8
"""Adam's first steps move a weight by about the rate, which no rounding to bf16 hides."""
NARROW = replace(CONFIG, hidden_size=2, num_heads=1, num_kv_heads=1, num_experts=2, num_layers=1)
"""Its router has four weights, which ZeRO deals out in pairs: half of the workers own none."""
CASES: dict[str, tuple[Tuning, MoEConfig]] = {
    **{tuning: (tuning, CONFIG) for tuning in get_args(Tuning)},
    "router_only narrow": ("router_only", NARROW),
}


class Run:
    """A model in an engine, and its steps."""

    def __init__(self, tuning: Tuning, config: MoEConfig) -> None:
        self.model = HybridModel(config, expert_parallel_group(EXPERT_PARALLEL))
        initialize(self.model, seed=0)
        self.before = {key: tensor.bfloat16() for key, tensor in checkpoint_slices(self.model)}
        freeze(self.model, tuning)
        self.engine = build_engine(
            TrainingStep(self.model, 0.01, 1), spec_of(EXPERT_PARALLEL, "bf16", adam_eps=ADAM_EPS)
        )
        self.gradients = 0
        take = self.engine.optimizer.step

        def noting_gradients() -> None:
            groups = self.engine.optimizer.averaged_gradients.values()
            self.gradients = sum(gradient.nbytes for group in groups for gradient in group)
            take()

        self.engine.optimizer.step = noting_gradients

    def take_steps(self, *steps: int) -> None:
        rows = packed_rows()
        for step in steps:
            mine = share_of_worker(ORDER.rows_of_step(step), dist.get_rank(), NUM_WORKERS)
            batches = [collate([None if row is None else rows[row]], ["c"], "cpu") for row in mine]
            taken = take_step(self.engine, batches, LEARNING_RATE, 1)
            assert taken.gradient_norm > 0
            assert not taken.is_skipped

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(checkpoint_slices(self.model))

    def hash(self) -> str:
        content = b"".join(tensor.float().numpy().tobytes() for _, tensor in sorted(self.weights().items()))
        return hashlib.sha256(content).hexdigest()


def measure(tuning: Tuning, config: MoEConfig, url: str) -> dict[str, Any]:
    """Two steps, a checkpoint and a third step; then the checkpoint and the third step in another engine."""
    run = Run(tuning, config)
    run.take_steps(0, 1)
    optimizer = run.engine.optimizer
    partitions = optimizer.single_partition_of_fp32_groups
    moments = [state[kind] for state in optimizer.optimizer.state.values() for kind in MOMENTS]
    measured = {
        "owned": sum(length for _, _, length in take_snapshot(run.engine).fragments),
        "masters": sum(partition.nbytes for partition in partitions),
        "moments": sum(moment.nbytes for moment in moments),
        "gradients": run.gradients,
        "groups": len(partitions),
        "frozen_bytes": frozen_bytes(run.model, NUM_WORKERS),
        "left": [name for name, weight in run.model.named_parameters() if weight.grad is not None],
    }
    fence = Fence(RunDirectory(url), 1, 1)
    writer = CheckpointWriter(run.engine, url, attempt=1, num_kept=1, timeout_s=60, fence=fence)
    assert writer.begin(TrainingState(2, 2), {})
    writer.finish()
    writer.close()
    run.take_steps(2)
    again = Run(tuning, config)
    state = resume(again.engine, url).state
    again.take_steps(2)
    changed = [key for key, tensor in run.weights().items() if not torch.equal(tensor, run.before[key])]
    hashes = [run.hash(), again.hash()]
    return measured | {"keys": list(run.before), "changed": changed, "resumed_at": state.step, "hashes": hashes}


def on_four_workers(directory: str) -> dict[str, Any]:
    """By case."""
    return {name: measure(*case, f"{directory}/{name}") for name, case in CASES.items()}


@pytest.fixture(name="measured", scope="module")
def _measured(four_workers: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By case, of each worker."""
    return {name: [worker["tuning"][name] for worker in four_workers] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_untrained_weights_stay_bit_identical(case: str, measured: dict[str, list[dict[str, Any]]]) -> None:
    tuning, _ = CASES[case]
    for worker in measured[case]:
        assert worker["changed"] == [key for key in worker["keys"] if TRAINED[tuning](key)]


@pytest.mark.parametrize("case", CASES)
def test_the_engine_holds_nothing_for_untrained_weights(case: str, measured: dict[str, list[dict[str, Any]]]) -> None:
    tuning, config = CASES[case]
    workers = measured[case]
    assert sum(worker["owned"] for worker in workers) == config.num_trained_params(tuning)
    for worker in workers:
        assert worker["masters"] == worker["gradients"] == worker["moments"] / 2
        # each group of parameters is filled up so that it can be dealt out evenly, in pairs
        assert 0 <= worker["masters"] - 4 * worker["owned"] <= 4 * worker["groups"] * 2 * NUM_WORKERS
        assert worker["left"] == []


@pytest.mark.parametrize("tuning", ["frozen_moe", "router_only"])
def test_freezing_saves_the_memory_that_is_told(tuning: str, measured: dict[str, list[dict[str, Any]]]) -> None:
    def held(workers: list[dict[str, Any]]) -> int:
        return sum(worker["masters"] + worker["moments"] + worker["gradients"] for worker in workers)

    full, frozen = measured["full"], measured[tuning]
    told = sum(worker["frozen_bytes"] for worker in frozen)
    # groups are filled up, as above
    padding = NUM_WORKERS * 16 * full[0]["groups"] * 2 * NUM_WORKERS
    assert abs(held(full) - held(frozen) - told) <= padding < 0.1 * told
    assert {worker["frozen_bytes"] for worker in full} == {0}


def test_a_worker_may_own_no_trained_weight(measured: dict[str, list[dict[str, Any]]]) -> None:
    assert [worker["owned"] for worker in measured["router_only narrow"]] == [2, 2, 0, 0]


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_brings_the_run_back(case: str, measured: dict[str, list[dict[str, Any]]]) -> None:
    for worker in measured[case]:
        assert worker["resumed_at"] == 2
        assert worker["hashes"][0] == worker["hashes"][1]
