"""The proof that an exported checkpoint is the trained model.

The checkpoint is loaded from its URL as whoever gets it would, and three things are compared: the hash of every tensor
and file, the set of tensors and with it the number of experts, and the logits of fixed token sequences.

A second copy of a large model fits no worker. So the tensors are read into the model itself, one at a time, after all
its weights were overwritten with NaN: logits without NaN can only come from what was read. Each process of one
expert-parallel group reads what it would hold in use, its experts and the dense part.

Logits must be equal bit by bit. The weights are, the kernels and the shapes are the same, and no sum of the forward
pass depends on the order in which threads or messages arrive: dispatch and combination gather, they do not scatter.

On a filesystem of the worker's own machine the operating system may answer from its memory, so there the comparison
proves what was written, not what the disk holds.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from torch import Tensor

from moe.attention import Documents
from moe.hf import CONFIG_FILE, INDEX_FILE, TensorFiles, all_keys, checkpoint_slices, load_checkpoint, read_config
from moe.model import HybridModel, PackedBatch
from ray_jobs.evaluate.mode import evaluating
from ray_jobs.run_directory import local_directory
from service.errors import CheckpointError

CHECKSUMS_FILE = "checksums.json"
_NUM_SEQUENCES, _SEQUENCE_TOKENS = 4, 64


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """What identifies a tensor: `dtype`, `shape`, and `sha256` of its bytes, row by row, little endian."""
    content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(content.data).hexdigest(),
    }


@torch.no_grad()
def probe_logits(model: HybridModel) -> Tensor:
    """Logits after each token of fixed random sequences; every process of the expert-parallel group must call.

    Each process has sequences of its own.

    Returns:
        [T, V] on the CPU.
    """
    length = min(_SEQUENCE_TOKENS, model.config.max_positions)
    lengths = [length] * _NUM_SEQUENCES
    device = model.lm_head.weight.device
    generator = torch.Generator().manual_seed(model.parallel.rank)
    tokens_T = torch.randint(model.config.vocab_size, (sum(lengths),), generator=generator).to(device)
    with evaluating(model):
        hidden_TD, _ = model(PackedBatch(tokens_T, Documents.from_lengths(lengths, device), (len(tokens_T),)))
    logits_TV: Tensor = model.lm_head(hidden_TD)
    return logits_TV.cpu()


def read_back(model: HybridModel, url: str, checksums_sha256: str, logits_TV: Tensor) -> dict[str, Any]:
    """Load a checkpoint into the model that it was written from, and compare.

    Every process of one expert-parallel group must call. Afterwards the model has the weights that were read, which
    are its own, or the checkpoint is refused and the model of no use.

    Args:
        model: as it was when the checkpoint was written.
        url: of the checkpoint.
        checksums_sha256: of its `checksums.json`, in hex.
        logits_TV: `probe_logits` of the model as it was.

    Returns:
        What this process found: `tensors` and `experts_per_layer` of the whole checkpoint, `logits_compared`,
        `max_logit_difference`.

    Raises:
        CheckpointError: anything differs or is missing; the message names the tensor or the file.
    """
    try:
        checksums = _read_checksums(url, checksums_sha256)
        weight_map = json.loads(_read_file(url, INDEX_FILE))["weight_map"]
        _require_keys(model, weight_map)
        mine = {key for key, _ in checkpoint_slices(model)}
        with local_directory(url, {*checksums["files"], *(weight_map[key] for key in mine)}) as directory:
            _compare_tensors(directory, {key: checksums["tensors"][key] for key in sorted(mine)})
            _compare_files(directory, checksums["files"])
            _require_config(model, directory)
            num_experts = _count_experts(weight_map, checksums["tensors"])
            _load_anew(model, directory)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise CheckpointError(f"{url} read back is not what was written: {error}") from error
    return {
        "tensors": len(weight_map),
        "experts_per_layer": num_experts,
        "logits_compared": logits_TV.numel(),
        "max_logit_difference": _compare_logits(url, probe_logits(model), logits_TV),
    }


def _read_file(url: str, name: str) -> bytes:
    filesystem, path = url_to_fs(f"{url}/{name}")
    content: bytes = filesystem.cat_file(path)
    return content


def _read_checksums(url: str, sha256: str) -> dict[str, Any]:
    content = _read_file(url, CHECKSUMS_FILE)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{CHECKSUMS_FILE} differs")
    checksums: dict[str, Any] = json.loads(content)
    return checksums


def _require_keys(model: HybridModel, weight_map: dict[str, str]) -> None:
    """Require the index to name every tensor of the architecture and no other."""
    expected = all_keys(model)
    if missing := expected - weight_map.keys():
        raise ValueError(f"{INDEX_FILE}: no tensor {min(missing)}")
    if unknown := weight_map.keys() - expected:
        raise ValueError(f"{INDEX_FILE}: unknown tensor {min(unknown)}")


def _require_config(model: HybridModel, directory: Path) -> None:
    if (config := read_config(directory)) != model.config:
        raise ValueError(f"{CONFIG_FILE} describes {config}, the trained model is {model.config}")


def _count_experts(weight_map: dict[str, str], tensors: dict[str, dict[str, Any]]) -> int:
    """Experts of each layer, by the index and by the shapes of the gates."""
    keys = [key.partition(".experts.") for key in weight_map]
    in_index = Counter(layer for layer, _, rest in keys if rest.endswith(".w2.weight"))
    gates = {key: tensor for key, tensor in tensors.items() if key.endswith(".gate.weight")}
    of_gates = {key.removesuffix(".gate.weight"): tensor["shape"][0] for key, tensor in gates.items()}
    if in_index != of_gates:
        raise ValueError(f"experts in {INDEX_FILE}: {dict(in_index)}, in the gates: {of_gates}")
    [count] = set(of_gates.values())
    return int(count)


def _compare_tensors(directory: Path, expected: dict[str, dict[str, Any]]) -> None:
    with TensorFiles(directory) as stored:
        for key, description in expected.items():
            if (found := describe_tensor(stored.get(key))) != description:
                raise ValueError(f"{stored.file_of(key).name}: {key} is {found}, was {description}")


def _compare_files(directory: Path, expected: dict[str, str]) -> None:
    for name, sha256 in expected.items():
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{name} differs")


def _load_anew(model: HybridModel, directory: Path) -> None:
    """Fill the weights from a checkpoint, so that nothing of what they were is left."""
    for parameter in model.parameters():
        parameter.detach().fill_(float("nan"))
    load_checkpoint(model, directory)


def _compare_logits(url: str, logits_TV: Tensor, expected_TV: Tensor) -> float:
    """Require equality; returns the largest difference, 0."""
    difference = float((logits_TV.double() - expected_TV.double()).abs().max())
    if difference != 0:  # NaN, too
        raise CheckpointError(f"{url}: logits of what was read back differ from the trained model's by {difference}")
    return difference
