"""One training run, spread in different ways over real processes, is the same run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.train.checkpoint import is_whole, saved_step

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "parallel_run.py"
STEPS = 7

# Sums of at most 4 rows' gradients, and reductions over 50 outputs, taken in another order: each step's loss is
# uncertain by about sqrt(4 * 50) * 2^-24 = 8e-7 of itself; over 7 steps these errors at most add up: 6e-6.
TOLERANCE = 6e-6


def launch(
    out: Path, num_workers: int, expert_parallel: int, *options: str, steps: int = STEPS
) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    command += [str(SCRIPT), str(out), str(expert_parallel), str(steps), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"result-{rank}.json").read_text()) for rank in range(num_workers)]


def weights(out: Path, num_workers: int) -> dict[str, torch.Tensor]:
    parts = [torch.load(out / f"weights-{rank}.pt") for rank in range(num_workers)]
    return {key: tensor for part in parts for key, tensor in part.items()}


def assert_same_run(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("losses", "norms", "balances"):
        assert actual[name] == pytest.approx(expected[name][actual["start"] :], rel=TOLERANCE), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("alone")
    return out, launch(out, 1, 1)[0]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("spread")
    return out, launch(out, 2, 2)


def test_data_parallel_equals_accumulation(alone: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert_same_run(launch(tmp_path, 2, 1)[0], alone[1])


def test_expert_parallel_equals_one_process(
    alone: tuple[Path, dict[str, Any]], spread: tuple[Path, list[dict[str, Any]]]
) -> None:
    assert_same_run(spread[1][0], alone[1])
    assert min(alone[1]["norms"]) > 0.2, "the gradient is clipped at every step"
    expected = weights(alone[0], 1)
    actual = weights(spread[0], 2)
    assert actual.keys() == expected.keys()
    for key, tensor in actual.items():
        # Adam moves a weight by at most the learning rate a step, whatever the gradient's error
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=STEPS * 1e-2 * 100 * TOLERANCE)


def test_the_comparison_notices_a_loss_normalised_per_worker(
    alone: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    mutated = launch(tmp_path, 2, 1, "--normalise-per-worker")[0]
    with pytest.raises(AssertionError, match="losses"):
        assert_same_run(mutated, alone[1])


def test_resuming_is_bitwise_the_undisturbed_run(spread: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out, undisturbed = spread
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    assert saved_step(tmp_path) == 6
    resumed = launch(tmp_path, 2, 2, "--resume")
    assert [result["start"] for result in resumed] == [6, 6]
    assert [result["hash"] for result in resumed] == [result["hash"] for result in undisturbed]


@pytest.mark.parametrize(("num_workers", "expert_parallel"), [(1, 1), (4, 2)])
def test_a_checkpoint_resumes_on_another_topology(
    num_workers: int, expert_parallel: int, spread: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, undisturbed = spread
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    assert_same_run(launch(tmp_path, num_workers, expert_parallel, "--resume")[0], undisturbed[0])


def test_frozen_experts_stay_bit_identical_in_bf16(tmp_path: Path) -> None:
    results = launch(tmp_path, 2, 2, "--freeze", "--precision", "bf16", steps=3)
    assert all(result["experts_unchanged"] for result in results)
    assert results[0]["losses"][2] != results[0]["losses"][0]


def test_a_torn_checkpoint_is_not_whole(spread: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out, _ = spread
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    assert is_whole(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert not is_whole(tmp_path)
    shard.unlink()
    assert not is_whole(tmp_path)
