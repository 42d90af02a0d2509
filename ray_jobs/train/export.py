"""The Hugging Face checkpoint that a job leaves: weights, config, tokenizer, generation config.

Each worker of the first expert-parallel group writes its own experts, worker 0 the dense part too, so nothing is
gathered. Every worker then reads back what it wrote and compares it bit by bit; the index, written last, makes the
export whole.

Each try writes to a directory of its own, `exports/attempt-<n>-<random>/`, so shards of two tries never mix, and then
commits it in `export.json`. An attempt gives way to a higher one that has committed before it. Should both commit at
the same instant, either may win: both exports are whole, and of the same weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fsspec.core import url_to_fs
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from moe.hf import INDEX_FILE, CheckpointWriter, checkpoint_slices, finish_checkpoint
from moe.model import HybridModel
from ray_jobs.run_directory import RunDirectory, write_file
from service.errors import CheckpointError

EXPORT_FILE = "export.json"


def export(model: HybridModel, tokenizer_directory: Path, run: RunDirectory, attempt: int, step: int) -> None:
    """Write, verify and commit the checkpoint; all workers must call.

    Args:
        model: trained, in the dtype to export.
        tokenizer_directory: its files are copied.
        run: the run directory.
        attempt: of the job.
        step: optimiser steps done.

    Raises:
        CheckpointError: a tensor read back differs.
    """
    names = [f"attempt-{attempt}-{uuid.uuid4().hex[:8]}"]
    dist.broadcast_object_list(names)
    outcome = write_checkpoint(model, tokenizer_directory, run.join("exports", names[0]))
    if dist.get_rank() == 0:
        commit_export(run, outcome | {"attempt": attempt, "step": step})


def commit_export(run: RunDirectory, document: dict[str, Any]) -> None:
    """Make an export the job's, unless a higher attempt has committed one.

    Args:
        run: the run directory.
        document: `path`, `bytes`, `files`, `verified`, `attempt`, `step`.
    """
    committed = run.read_json(EXPORT_FILE)
    if committed is None or committed["attempt"] <= document["attempt"]:
        run.write_json(EXPORT_FILE, document)


def committed_step(run: RunDirectory) -> int | None:
    """Optimiser steps done of the weights that the job has exported; None before it has."""
    committed = run.read_json(EXPORT_FILE)
    return None if committed is None else int(committed["step"])


def write_checkpoint(model: HybridModel, tokenizer_directory: Path, url: str) -> dict[str, Any]:
    """Write and verify a checkpoint; all workers must call.

    Args:
        model: in the dtype to write.
        tokenizer_directory: its files are copied.
        url: directory to write to; new.

    Returns:
        `path`, `bytes`, `files`, `verified` (true: every tensor was read back and is bit-identical).

    Raises:
        CheckpointError: a tensor read back differs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        tensors = dict(_own_tensors(model))
        writer = CheckpointWriter(directory, part=dist.get_rank())
        for key, tensor in tensors.items():
            writer.add(key, tensor)
        writer.flush()
        _upload(directory, url)
        _verify(tensors, writer.weight_map, url)
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (writer.weight_map, writer.num_bytes))
        weight_map = {key: name for part, _ in parts for key, name in part.items()}
        num_bytes = sum(part_bytes for _, part_bytes in parts)
        if dist.get_rank() == 0:
            rest = directory / "rest"
            shutil.copytree(tokenizer_directory, rest)
            finish_checkpoint(rest, model.config, model.lm_head.weight.dtype, weight_map, num_bytes)
            _write_generation_config(rest)
            _upload_index_last(rest, url)
        dist.barrier()
    return {"path": url, "bytes": num_bytes, "files": len(set(weight_map.values())), "verified": True}


def _own_tensors(model: HybridModel) -> list[tuple[str, Tensor]]:
    if dist.get_rank() >= model.parallel.size:
        return []
    return [(key, tensor) for key, tensor in checkpoint_slices(model) if ".experts." in key or dist.get_rank() == 0]


def _upload(directory: Path, url: str) -> None:
    filesystem, target = url_to_fs(url)
    filesystem.makedirs(target, exist_ok=True)
    for path in sorted(directory.iterdir()):
        filesystem.put_file(str(path), f"{target}/{path.name}")


def _verify(tensors: dict[str, Tensor], weight_map: dict[str, str], url: str) -> None:
    filesystem, source = url_to_fs(url)
    with tempfile.TemporaryDirectory() as scratch:
        for name in sorted(set(weight_map.values())):
            copy = f"{scratch}/{name}"
            filesystem.get_file(f"{source}/{name}", copy)
            with safe_open(copy, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118  not a mapping
                    if not torch.equal(shard.get_tensor(key), tensors[key].cpu()):
                        raise CheckpointError(f"{url}/{name}: {key} read back differs from what was written")


def _write_generation_config(directory: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    document = {"do_sample": False, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (directory / "generation_config.json").write_text(json.dumps(document, indent=2) + "\n")


def _upload_index_last(directory: Path, url: str) -> None:
    index = (directory / INDEX_FILE).rename(directory.parent / INDEX_FILE)
    _upload(directory, url)
    write_file(f"{url}/{INDEX_FILE}", index.read_bytes())
