from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import ray_jobs.train.resume
from ray_jobs.train.checkpoint import MANIFEST_FILE, Manifest, TrainingState, load_checkpoint, read_manifest
from ray_jobs.train.resume import checkpoints_newest_first, resume
from service.errors import CheckpointError
from tests.processes import run_processes


def write_checkpoint(directory: Path, step: int) -> Path:
    """Whole, by its manifest; of a model without trained parameters."""
    directory.mkdir(parents=True)
    shards = {}
    for rank in range(2):
        content, name = bytes(3 + rank), f"shard-{rank:05d}.safetensors"
        (directory / name).write_bytes(content)
        shards[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = Manifest(TrainingState(step, updates=step - 1), {"step": step}, shards, {})
    (directory / MANIFEST_FILE).write_text(json.dumps(asdict(manifest)))
    return directory


def saved_step(directory: Path) -> int | None:
    manifest = read_manifest(str(directory))
    return None if manifest is None else manifest.state.step


@pytest.mark.parametrize("name", ["checkpoints", "run [a*]?"])
def test_the_newest_whole_checkpoint_of_any_attempt_comes_first(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    assert checkpoints_newest_first(str(root)) == []
    older = write_checkpoint(root / "attempt-1" / "checkpoint_b", 20)
    newest = write_checkpoint(root / "attempt-1" / "checkpoint_a", 100)
    middle = write_checkpoint(root / "attempt-2" / "checkpoint_z", 40)
    write_checkpoint(root / "attempt-3" / "checkpoint_torn", 200).joinpath(MANIFEST_FILE).write_text("")
    (root / "attempt-3" / "checkpoint_manager_snapshot.json").write_text("")
    assert checkpoints_newest_first(str(root)) == [f"file://{path}" for path in (newest, middle, older)]
    shutil.rmtree(newest)
    assert checkpoints_newest_first(f"file://{root}") == [f"file://{path}" for path in (middle, older)]


def test_a_checkpoint_that_is_not_whole_has_no_step(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint", 6)
    manifest, shard = directory / MANIFEST_FILE, directory / "shard-00001.safetensors"
    assert saved_step(directory) == 6
    content = manifest.read_text()
    for torn in ("", content[:-1], content[:20], "{}"):
        manifest.write_text(torn)
        assert saved_step(directory) is None, torn
    manifest.write_text(content)
    shard.write_bytes(b"123")
    assert saved_step(directory) is None, "a shard is cut short"
    shard.unlink()
    assert saved_step(directory) is None, "a shard is missing"
    shutil.rmtree(directory)
    assert saved_step(directory) is None, "deleted"


def test_the_step_counter_lies_beside_the_weights(tmp_path: Path) -> None:
    """Fused AdamW refuses to step with its counter on another device."""
    partition = torch.empty(4, device="meta")
    adam = SimpleNamespace(state={})
    optimizer = SimpleNamespace(optimizer=adam, single_partition_of_fp32_groups=[partition])
    module = nn.Module()
    module.model = SimpleNamespace(parallel=None)  # type: ignore[assignment]
    engine: Any = SimpleNamespace(optimizer=optimizer, module=module)
    assert load_checkpoint(engine, str(write_checkpoint(tmp_path / "checkpoint", 6))).state == TrainingState(6, 5)
    assert adam.state[partition]["step"].shape == ()
    assert {value.device.type for value in adam.state[partition].values()} == {"meta"}


def _resume(rank: int, directory: str, gone_everywhere: bool) -> None:
    """The newest checkpoint vanishes before worker 1 can read it."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    loaded = []

    def load(_engine: object, url: str) -> Manifest:
        manifest = read_manifest(url)
        assert manifest is not None
        step = manifest.state.step
        if gone_everywhere or (rank == 1 and step == 100):
            raise FileNotFoundError(url)
        loaded.append(step)
        return manifest

    ray_jobs.train.resume.load_checkpoint = load
    if rank == 1:  # only worker 0 looks
        ray_jobs.train.resume.checkpoints_newest_first = lambda _url: []
    engine: Any = None
    try:
        found = resume(engine, f"{directory}/checkpoints")
        assert found.cursor == ({"step": found.state.step} if found.state.step else None)
        outcome: Any = [found.state.step, [Path(url).name for url in found.damaged]]
    except FileNotFoundError:
        outcome = "gone"
    except CheckpointError as error:
        outcome = str(error)
    Path(f"{directory}/outcome-{rank}").write_text(json.dumps([outcome, loaded]))
    dist.destroy_process_group()


def resumed(directory: Path, *, gone_everywhere: bool = False) -> list[Any]:
    run_processes(_resume, str(directory), gone_everywhere, number=2)
    return [json.loads((directory / f"outcome-{rank}").read_text()) for rank in range(2)]


def test_all_workers_pass_over_a_checkpoint_that_vanishes_on_one(tmp_path: Path) -> None:
    for step in (20, 100, 40):
        write_checkpoint(tmp_path / "checkpoints" / "attempt-1" / f"checkpoint-{step}", step)
    assert resumed(tmp_path) == [[[40, []], [100, 40]], [[40, []], [40]]]


def test_an_engine_left_half_restored_is_not_trained_from_the_start(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoints" / "attempt-1" / "checkpoint-20", 20)
    assert resumed(tmp_path, gone_everywhere=True) == [["gone", []], ["gone", []]]


def test_without_a_checkpoint_training_starts_at_the_beginning(tmp_path: Path) -> None:
    assert resumed(tmp_path) == [[[0, []], []], [[0, []], []]]


def test_what_is_not_what_was_written_is_passed_over_by_all_and_named(tmp_path: Path) -> None:
    attempt = tmp_path / "checkpoints" / "attempt-1"
    for step in (20, 40):
        write_checkpoint(attempt / f"checkpoint-{step}", step)
    damage = attempt / "checkpoint-40" / "shard-00001.safetensors"
    damage.write_bytes(b"1234")  # of the same size
    assert resumed(tmp_path) == [[[20, ["checkpoint-40"]], [20]]] * 2
    shutil.rmtree(attempt / "checkpoint-20")
    (tmp_path / "store").unlink(missing_ok=True)
    [[outcome, loaded], other] = resumed(tmp_path)
    assert "checkpoint-40; delete them" in outcome
    assert (loaded, other) == ([], [outcome, []])
