"""One training run, spread in different ways over real processes, is the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_processes
from tests.train import parallel_run
from tests.train.parallel_run import ADAM_EPS, BALLAST, CLIP_NORM, LEARNING_RATE

pytestmark = pytest.mark.slow
STEPS = 7

# Sums of at most 4 rows' gradients, and reductions over 50 outputs, taken in another order: each step's loss is
# uncertain by about sqrt(4 * 50) * 2^-24 = 8e-7 of itself; over 7 steps these errors at most add up: 6e-6.
TOLERANCE = 6e-6

# The clipped gradient has norm CLIP_NORM, so no element of it is off by more than d = TOLERANCE * CLIP_NORM. Adam moves
# a weight by rate * m / (s + eps), m the mean of the gradients and s the root of the mean of their squares: both are
# off by at most d, and |m| <= 1.1 s in 7 steps with betas 0.9 and 0.95, hence the quotient by at most 2.1 d / eps. The
# eps is as large as the gradients: a small one would blow up the error of small elements, and hide a wrong scale.
WEIGHT_TOLERANCE = STEPS * LEARNING_RATE * 2.1 * TOLERANCE * CLIP_NORM / ADAM_EPS


def launch(
    out: Path, num_workers: int, expert_parallel: int, *options: str, steps: int = STEPS
) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    run_processes(
        parallel_run.work, num_workers, [str(out), str(expert_parallel), str(steps), *options], number=num_workers
    )
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
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=WEIGHT_TOLERANCE)


def test_the_comparison_notices_a_loss_normalised_per_worker(
    alone: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    mutated = launch(tmp_path, 2, 1, "--normalise-per-worker")[0]
    with pytest.raises(AssertionError, match="losses"):
        assert_same_run(mutated, alone[1])


def leave_checkpoint(out: Path, step: int, target: Path) -> Path:
    """A run directory as it was when the step's checkpoint was the newest; returns the checkpoint."""
    [checkpoint] = (out / "checkpoints" / "attempt-1").glob(f"{step:08d}-*")
    return Path(shutil.copytree(checkpoint, target / "checkpoints" / "attempt-1" / checkpoint.name))


def test_the_norms_of_dense_and_expert_parts_make_the_one_that_clips(
    alone: tuple[Path, dict[str, Any]], spread: tuple[Path, list[dict[str, Any]]]
) -> None:
    for result in (alone[1], *spread[1]):
        assert result["norms"] == pytest.approx(result["norms_by_deepspeed"], rel=TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_with_an_infinite_gradient_on_one_worker_changes_nothing_anywhere(
    precision: str, tmp_path: Path
) -> None:
    results = launch(tmp_path, 2, 2, "--precision", precision, "--break-step", "1", steps=2)
    assert [result["skipped"] for result in results] == [[False, True]] * 2
    assert [result["updates"] for result in results] == [1, 1]
    assert [result["hash"] for result in results] == [result["hash_before_break"] for result in results]


@pytest.mark.parametrize("step", [6, 2])
def test_resuming_is_bitwise_the_undisturbed_run(
    step: int, spread: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, undisturbed = spread
    leave_checkpoint(out, step, tmp_path)
    resumed = launch(tmp_path, 2, 2)
    assert [result["start"] for result in resumed] == [step, step]
    assert [result["hash"] for result in resumed] == [result["hash"] for result in undisturbed]


def test_resuming_is_bitwise_in_bf16(tmp_path: Path) -> None:
    undisturbed = launch(tmp_path / "undisturbed", 2, 2, "--precision", "bf16")
    leave_checkpoint(tmp_path / "undisturbed", 2, tmp_path / "resumed")
    resumed = launch(tmp_path / "resumed", 2, 2, "--precision", "bf16")
    assert [result["start"] for result in resumed] == [2, 2]
    assert [result["hash"] for result in resumed] == [result["hash"] for result in undisturbed]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    spread: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, undisturbed = spread
    for step in (2, 4):
        newest = leave_checkpoint(out, step, tmp_path)
    shard = newest / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    resumed = launch(tmp_path, 2, 2)
    assert [result["start"] for result in resumed] == [2, 2]
    assert [result["hash"] for result in resumed] == [result["hash"] for result in undisturbed]


@pytest.mark.parametrize(("num_workers", "expert_parallel"), [(1, 1), (4, 2)])
def test_a_checkpoint_resumes_on_another_topology(
    num_workers: int, expert_parallel: int, spread: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, undisturbed = spread
    leave_checkpoint(out, 2, tmp_path)
    resumed = launch(tmp_path, num_workers, expert_parallel)[0]
    assert resumed["start"] == 2
    assert_same_run(resumed, undisturbed[0])


def test_bf16_gradients_of_many_micro_batches_add_up_in_fp32(tmp_path: Path) -> None:
    num = 128
    launch(tmp_path, 1, 1, "--precision", "bf16", "--gradients", "--batch-rows", str(num), steps=1)
    apart = torch.load(tmp_path / "gradients-apart.pt")
    assert len(apart) == num
    for name, actual in torch.load(tmp_path / "gradients.pt").items():
        terms = torch.stack([gradients[name] for gradients in apart])
        # each of the additions rounds a partial sum, which is at most the sum of magnitudes, by 2^-24 of itself
        bound = num * 2**-24 * terms.abs().sum(0)
        assert ((actual.double() - terms.sum(0)).abs() <= bound).all(), name


def test_every_spread_counts_the_same_operations_and_the_largest_memory(
    alone: tuple[Path, dict[str, Any]], spread: tuple[Path, list[dict[str, Any]]]
) -> None:
    last = [result["last_step"] for result in (alone[1], *spread[1])]
    assert {step["model_flops"] for step in last} == {last[0]["model_flops_unfrozen"]}
    for step in last:
        phases = [step[f"{phase}_s"] for phase in ("forward", "backward", "optimizer")]
        assert min(phases) > 0
        assert sum(phases) <= step["step_s"]
    told = {step["memory_bytes"] for step in last[1:]}
    later = [step["peak_memory_bytes"] for step in last[1:]]
    assert len(told) == 1, "all workers know of the largest"
    # worker 1 holds BALLAST more than worker 0; the kernel's own count may be off by some pages of each thread
    assert told.pop() == pytest.approx(max(later), abs=0.1 * BALLAST)
    assert later[1] - later[0] > 0.5 * BALLAST


def test_no_worker_loads_the_compiler_of_an_optimizer_that_it_does_not_use(
    alone: tuple[Path, dict[str, Any]], spread: tuple[Path, list[dict[str, Any]]]
) -> None:
    assert [result["has_compiler"] for result in (alone[1], *spread[1])] == [False] * 3
