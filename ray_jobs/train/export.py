"""The Hugging Face checkpoint that a job leaves: weights, config, tokenizer, generation config.

Each worker of the first expert-parallel group writes its own experts, worker 0 the dense part too, so nothing is
gathered. The index is written last. Then the group reads all of it back (`ray_jobs.train.read_back`), and only then it
is committed.

Each try writes to a directory of its own, `exports/attempt-<n>-<random>/`, so shards of two tries never mix. It is
committed by a file beside it, `exports/attempt-<n>-<random>.json`, and of several the highest attempt's counts: a
commit overwrites nothing, so it does not matter in which order overlapping attempts commit. The driver removes what
does not count, its own attempt's and lower ones'. A lower attempt that is still at work may write its file after that;
as a directory without an index counts as none, that changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import uuid
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from fsspec.core import url_to_fs
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from moe.hf import INDEX_FILE, CheckpointWriter, checkpoint_slices, finish_checkpoint
from moe.model import HybridModel
from ray_jobs.fence import Fence
from ray_jobs.run_directory import RunDirectory, write_file
from ray_jobs.train.read_back import CHECKSUMS_FILE, describe_tensor, probe_logits, read_back

EXPORTS_DIRECTORY = "exports"
PACKAGES = ("sleddog", "deepspeed", "ray", "safetensors", "torch", "transformers")
"""Those whose versions are told of: their code trained the model and wrote it."""
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_TRY = re.compile(r"attempt-(\d+)-[0-9a-f]+")


def export(
    model: HybridModel, tokenizer_directory: Path, run: RunDirectory, attempt: int, step: int, *, fence: Fence
) -> None:
    """Write, read back and commit the checkpoint; all workers must call.

    Args:
        model: trained, in the dtype to export; its weights are replaced by equal ones.
        tokenizer_directory: its files are copied.
        run: the run directory.
        attempt: of the job.
        step: optimiser steps done.
        fence: looked at before the commit.

    Raises:
        CheckpointError: what was read back differs; the model is of no use then.
        SupersededError: others have replaced these workers.
    """
    names = [f"attempt-{attempt}-{uuid.uuid4().hex[:8]}"]
    dist.broadcast_object_list(names)
    url = run.join(EXPORTS_DIRECTORY, names[0])
    is_writer = dist.get_rank() < model.parallel.size
    logits_TV = probe_logits(model) if is_writer else None
    written = write_checkpoint(model, tokenizer_directory, url)
    found = None if logits_TV is None else read_back(model, url, written["checksums_sha256"], logits_TV)
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, found)
    if dist.get_rank() == 0:
        of_group = of_all[: model.parallel.size]
        verified = of_group[0] | {
            "logits_compared": sum(part["logits_compared"] for part in of_group),
            "max_logit_difference": max(part["max_logit_difference"] for part in of_group),
        }
        about = {"attempt": attempt, "step": step, "environment": _environment(model)}
        fence.check()
        commit_export(run, {**written, "verified": True, **verified, **about})


def commit_export(run: RunDirectory, document: dict[str, Any]) -> None:
    """Declare an export whole.

    Args:
        run: the run directory.
        document: what `committed_export` is to tell of it.
    """
    run.write_json(f"{EXPORTS_DIRECTORY}/{document['path'].rpartition('/')[2]}.json", document)


def committed_export(run: RunDirectory) -> dict[str, Any] | None:
    """The job's export: of those that are whole, the one of the highest attempt.

    Returns:
        `path`; `bytes`, `files`, `dtype`, `checksums_sha256`; `verified` (true), `tensors`, `experts_per_layer`,
        `logits_compared`, `max_logit_difference`; `attempt`, `step`, `environment`. None before there is one.
    """
    filesystem, root = url_to_fs(run.join(EXPORTS_DIRECTORY))
    filesystem.invalidate_cache()
    names = [path.rpartition("/")[2].removesuffix(".json") for path in filesystem.find(root, maxdepth=1)]
    whole = [name for name in names if _TRY.fullmatch(name) and filesystem.exists(f"{root}/{name}/{INDEX_FILE}")]
    documents = [run.read_json(f"{EXPORTS_DIRECTORY}/{name}.json") for name in sorted(whole)]
    standing = [document for document in documents if document is not None]
    return max(standing, key=lambda document: (document["attempt"], document["step"]), default=None)


def committed_step(run: RunDirectory) -> int | None:
    """Optimiser steps done of the weights that the job has exported; None before it has."""
    committed = committed_export(run)
    return None if committed is None else int(committed["step"])


def remove_superseded(run: RunDirectory, attempt: int) -> None:
    """Delete the exports of this and lower attempts that are not the job's; nothing before there is one.

    Of each the index goes first: from then on it counts as none, whoever commits it late.
    """
    if (committed := committed_export(run)) is None:
        return
    standing = committed["path"].rpartition("/")[2]
    filesystem, root = url_to_fs(run.join(EXPORTS_DIRECTORY))
    for path in filesystem.ls(root, detail=False):
        name = path.rpartition("/")[2].removesuffix(".json")
        found = _TRY.fullmatch(name)
        if found and int(found[1]) <= attempt and name != standing:
            for doomed in (f"{root}/{name}/{INDEX_FILE}", f"{root}/{name}.json", f"{root}/{name}"):
                if filesystem.exists(doomed):
                    filesystem.rm(doomed, recursive=True)


class _Part(NamedTuple):
    """What one worker wrote."""

    weight_map: dict[str, str]
    num_bytes: int
    tensors: dict[str, dict[str, Any]]


def write_checkpoint(model: HybridModel, tokenizer_directory: Path, url: str) -> dict[str, Any]:
    """Write a checkpoint; all workers must call.

    Args:
        model: in the dtype to write.
        tokenizer_directory: its files are copied.
        url: directory to write to; new.

    Returns:
        `path`, `bytes`, `files`, `dtype`, and `checksums_sha256`: of `checksums.json`, that holds dtype, shape and
        SHA-256 of every tensor, whichever shard it is in, and the SHA-256 of the other files.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        writer, tensors = CheckpointWriter(directory, part=dist.get_rank()), {}
        for key, tensor in _own_tensors(model):
            writer.add(key, tensor)
            tensors[key] = describe_tensor(tensor)
        writer.flush()
        _upload(directory, url)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, _Part(writer.weight_map, writer.num_bytes, tensors))
    checksums_sha256 = [""]
    if dist.get_rank() == 0:
        checksums_sha256 = [_finish(model, tokenizer_directory, url, parts)]
    dist.broadcast_object_list(checksums_sha256)  # the others wait here for the index
    return {
        "path": url,
        "bytes": sum(part.num_bytes for part in parts),
        "files": len({name for part in parts for name in part.weight_map.values()}),
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "checksums_sha256": checksums_sha256[0],
    }


def _own_tensors(model: HybridModel) -> list[tuple[str, Tensor]]:
    if dist.get_rank() >= model.parallel.size:
        return []
    return [(key, tensor) for key, tensor in checkpoint_slices(model) if ".experts." in key or dist.get_rank() == 0]


def _upload(directory: Path, url: str) -> None:
    filesystem, target = url_to_fs(url)
    filesystem.makedirs(target, exist_ok=True)
    for path in sorted(directory.iterdir()):
        filesystem.put_file(str(path), f"{target}/{path.name}")


def _finish(model: HybridModel, tokenizer_directory: Path, url: str, parts: list[_Part]) -> str:
    """Write what stands beside the shards, the index last; returns the hash of `checksums.json`."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "rest"
        shutil.copytree(tokenizer_directory, directory)
        _name_tokenizer_class(directory)
        ids = _special_ids(directory)
        config = replace(model.config, kept=model.config.kept | ids)
        weight_map = {key: name for part in parts for key, name in part.weight_map.items()}
        num_bytes = sum(part.num_bytes for part in parts)
        finish_checkpoint(directory, config, model.lm_head.weight.dtype, weight_map, num_bytes)
        _write_generation_config(directory, ids)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
        tensors = sorted((key, description) for part in parts for key, description in part.tensors.items())
        checksums = json.dumps({"tensors": dict(tensors), "files": files}).encode()
        (directory / CHECKSUMS_FILE).write_bytes(checksums)
        index = (directory / INDEX_FILE).rename(directory.parent / INDEX_FILE)
        _upload(directory, url)
        write_file(f"{url}/{INDEX_FILE}", index.read_bytes())
    return hashlib.sha256(checksums).hexdigest()


def _name_tokenizer_class(directory: Path) -> None:
    """Have `AutoTokenizer` take `tokenizer.json` as it is, which is how the data was tokenised.

    By a name that all versions of Transformers know, and not by the code that a base's tokenizer may have come with:
    that is not beside the checkpoint.
    """
    path = directory / _TOKENIZER_CONFIG_FILE
    document = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    document.pop("auto_map", None)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _special_ids(directory: Path) -> dict[str, int]:
    """Token ids by their keys in the configs; without a padding token, the end of a text pads, as no loss sees it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    end = tokenizer.eos_token_id
    padding = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": padding}


def _write_generation_config(directory: Path, ids: dict[str, int]) -> None:
    """Moderate sampling: greedy answers of chat models tend to repeat themselves when they are long."""
    GenerationConfig(do_sample=True, temperature=0.7, top_p=0.95, **ids).save_pretrained(directory)


def _environment(model: HybridModel) -> dict[str, Any]:
    """What the model was trained on and with."""
    device = model.lm_head.weight.device
    return {
        "workers": dist.get_world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "versions": {package: version(package) for package in PACKAGES},
    }
