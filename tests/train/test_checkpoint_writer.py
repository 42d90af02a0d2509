"""Checkpoints on storages that are slow, that fail for a while, and that fail for good."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import ray_jobs.train.checkpoint_writer as module
from ray_jobs.fence import Fence
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.checkpoint import (
    Snapshot,
    TrainingState,
    damaged_shards,
    read_manifest,
    write_manifest,
    write_shard,
)
from ray_jobs.train.checkpoint_writer import CheckpointWriter, prune
from service.errors import StorageError

WEIGHTS = Snapshot({"master/w@0": torch.arange(5.0), "exp_avg/w@0": torch.zeros(5)}, [("w", 0, 5)])


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointWriter]:
    """Of one process, for an engine of one parameter."""
    monkeypatch.setattr(module, "take_snapshot", lambda _engine: WEIGHTS)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    engine: Any = SimpleNamespace(device="cpu")
    fence = Fence(RunDirectory(f"{tmp_path}/run"), 1, 1)
    made = CheckpointWriter(engine, str(tmp_path), attempt=1, num_kept=2, timeout_s=0.5, fence=fence)
    yield made
    made.close()
    dist.destroy_process_group()


def steps_on(directory: Path) -> list[int]:
    manifests = [read_manifest(str(path)) for path in sorted(directory.glob("attempt-*/*"))]
    return [manifest.state.step for manifest in manifests if manifest is not None]


def on_storage(work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put something before each write of a shard."""

    def write(*arguments: Any) -> Any:
        work()
        return write_shard(*arguments)

    monkeypatch.setattr(module, "write_shard", write)


def test_a_shard_is_a_safetensors_file_on_any_filesystem(tmp_path: Path) -> None:
    written = write_shard(WEIGHTS, f"{tmp_path}/here", 3)
    assert written.name == "shard-00003.safetensors"
    for key, tensor in load_file(tmp_path / "here" / written.name).items():
        assert torch.equal(tensor, WEIGHTS.tensors[key])
    elsewhere = write_shard(WEIGHTS, "memory://checkpoint", 3)
    assert elsewhere == written
    write_manifest("memory://checkpoint", TrainingState(7, 6), {"rows_consumed": 28}, [elsewhere])
    manifest = read_manifest("memory://checkpoint")
    assert manifest is not None
    assert (manifest.state, manifest.data) == (TrainingState(7, 6), {"rows_consumed": 28})
    assert damaged_shards("memory://checkpoint", manifest, [written.name]) == []


def test_only_the_newest_stay(writer: CheckpointWriter, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        assert writer.begin(TrainingState(step, step), {})
        saved = writer.finish().saved
        assert saved is not None
        assert (tmp_path / saved[0]).is_dir()
        assert saved[1].step == step
    assert steps_on(tmp_path) == [4, 6]


def test_one_that_is_due_while_another_is_written_is_left_out(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    on_storage(gate.wait, monkeypatch)
    assert writer.begin(TrainingState(2, 2), {})
    assert not writer.begin(TrainingState(4, 4), {})
    assert writer.advance().saved is None
    gate.set()
    assert writer.finish().saved is not None
    assert steps_on(tmp_path) == [2]
    assert writer.begin(TrainingState(6, 6), {})


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_storage_that_fails_for_a_while_delays_a_checkpoint(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [full_disk] * 3
    on_storage(lambda: failures.pop()() if failures else None, monkeypatch)
    writer.begin(TrainingState(2, 2), {})
    advance = writer.finish()
    assert advance.is_delayed
    assert advance.saved is not None
    assert steps_on(tmp_path) == [2]


def test_a_storage_that_fails_for_good_ends_the_run(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_storage(full_disk, monkeypatch)
    writer.begin(TrainingState(2, 2), {})
    with pytest.raises(StorageError, match="No space left on device"):
        writer.finish()
    assert steps_on(tmp_path) == []


def checkpoint(directory: Path, step: int, *, whole: bool = True) -> None:
    shard = write_shard(WEIGHTS, str(directory), 0)
    if whole:
        write_manifest(str(directory), TrainingState(step, step), {}, [shard])


def test_torn_and_old_ones_of_this_attempt_and_earlier_ones_go(tmp_path: Path) -> None:
    for attempt, step, whole in (
        (1, 10, True),
        (1, 20, False),
        (1, 30, True),
        (2, 40, False),
        (2, 50, True),
        (2, 60, False),
        (3, 20, True),
    ):
        checkpoint(tmp_path / f"attempt-{attempt}" / f"{step:08d}-abc", step, whole=whole)
    prune(str(tmp_path), attempt=2, num_kept=2)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("attempt-*/*"))
    assert left == [
        "attempt-1/00000030-abc",
        "attempt-2/00000040-abc",  # may be one that another worker group is writing
        "attempt-2/00000050-abc",
        "attempt-2/00000060-abc",
        "attempt-3/00000020-abc",
    ]
