from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import ray_jobs.train.export
from moe.hf import load_checkpoint, read_config
from moe.model import HybridModel
from ray_jobs.data.tokenise import train_bpe
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.export import EXPORT_FILE, commit_export, committed_step, export
from tests.moe.conftest import TINY, tiny_model


def test_a_lower_attempt_does_not_replace_a_higher_ones_export(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    assert committed_step(run) is None
    for path, attempt, standing in (("a", 2, "a"), ("b", 1, "a"), ("c", 2, "c"), ("d", 3, "d")):
        commit_export(run, {"path": path, "attempt": attempt, "step": 7})
        assert json.loads((tmp_path / EXPORT_FILE).read_text())["path"] == standing
    assert committed_step(run) == 7


def _export(directory: Path, attempt: int, dies_before: str | None) -> None:
    """One try, in a process of its own, killed before it writes the named file."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store-{os.getpid()}", rank=0, world_size=1)
    write_file = ray_jobs.train.export.write_file

    def die_or_write(url: str, content: bytes) -> None:
        if dies_before is not None and url.endswith(dies_before):
            os._exit(9)
        write_file(url, content)

    ray_jobs.train.export.write_file = die_or_write
    run = RunDirectory(f"{directory}/run")
    if dies_before == EXPORT_FILE:
        ray_jobs.train.export.commit_export = lambda *_: os._exit(9)
    export(tiny_model(), directory / "tokenizer", run, attempt, step=7)
    dist.destroy_process_group()


def run_export(directory: Path, attempt: int, dies_before: str | None = None) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_export, args=(directory, attempt, dies_before))
    process.start()
    process.join()
    assert process.exitcode == (9 if dies_before else 0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    train_bpe(["What is 1 plus 1?"] * 9, 300, tmp_path / "tokenizer")
    return tmp_path


def exported(run: Path) -> Path:
    document = json.loads((run / EXPORT_FILE).read_text())
    path = Path(document["path"])
    assert read_config(path) == TINY
    model = HybridModel(TINY)
    load_checkpoint(model, path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
    assert document["verified"]
    assert document["bytes"] == sum(tensor.numel() * 4 for tensor in model.parameters())
    return path


def test_a_torn_export_never_looks_whole_and_harms_no_other(directory: Path) -> None:
    run = directory / "run"
    run_export(directory, 1, dies_before=".index.json")
    [torn] = (run / "exports").iterdir()
    assert list(torn.glob("*.safetensors"))
    assert not list(torn.glob("*.index.json")), "the index is written last"
    run_export(directory, 1, dies_before=EXPORT_FILE)
    assert not (run / EXPORT_FILE).exists(), "whole, but not committed"
    run_export(directory, 1)
    first = exported(run)
    assert len(list((run / "exports").iterdir())) == 3, "each try has its own directory"
    run_export(directory, 2, dies_before=".index.json")
    assert exported(run) == first, "a later try that fails leaves it standing"
    run_export(directory, 2)
    assert exported(run) != first
