"""Checkpoints in the published Hugging Face form of Arctic: keys, reading, writing.

Reading takes only what this process holds, its own experts and the dense part, by mapping the files: one tensor at a
time, and no other bytes. Writing gives sharded safetensors with an index. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moe.config import MoEConfig
from moe.model import HybridModel

INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def checkpoint_slices(model: HybridModel) -> Iterator[tuple[str, Tensor]]:
    """Published key and the view of the parameter that it names, for all that this process holds.

    A stack of experts yields one view an expert and published tensor, under the expert's global number.
    """
    for name, parameter in model.named_parameters():
        if ".experts." not in name:
            yield _dense_key(name), parameter.detach()
            continue
        prefix, _, stack = name.partition(".experts.")
        first = model.parallel.rank * parameter.shape[0]
        for index, weight in enumerate(parameter.detach()):
            parts = zip(("w1", "w3"), weight.chunk(2), strict=True) if stack == "w13_EGD" else [("w2", weight)]
            for part, tensor in parts:
                yield f"model.{prefix}.experts.{first + index}.{part}.weight", tensor


def _dense_key(name: str) -> str:
    return name if name.startswith("lm_head.") else "model." + name.replace(".router.gate.", ".gate.")


def read_config(directory: Path) -> MoEConfig:
    """The architecture of a checkpoint.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it describes what this package does not compute.
    """
    return MoEConfig.from_hf(read_object(directory / CONFIG_FILE))


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a JSON object")  # noqa: TRY004  the file's fault, not the caller's
    return document


def load_checkpoint(model: HybridModel, directory: Path) -> None:
    """Fill the weights in place, cast to the model's dtype.

    Raises:
        FileNotFoundError: a file that the index names is missing.
        ValueError: a tensor is missing, unknown, of another shape or of integers, or holds NaN; the message names the
            tensor and its file.
    """
    with TensorFiles(directory) as stored:
        if unknown := stored.keys - all_keys(model):
            raise ValueError(f"{directory}: unknown tensor {min(unknown)}")
        for key, tensor in checkpoint_slices(model):
            _copy(stored.get(key), tensor, f"{stored.file_of(key)}: {key}")


class TensorFiles:
    """The tensors of a checkpoint, read one at a time and only when asked for.

    Args:
        directory: holds safetensors; with an index, or without one.

    Attributes:
        keys: of all tensors.

    Raises:
        ValueError: there are none, or the index is none.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = _shard_of_key(directory)
        self.keys = frozenset(self._files)
        self._stack = ExitStack()
        self._shards: dict[str, Any] = {}
        self._held: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def file_of(self, key: str) -> Path:
        """The file that a tensor lies in."""
        return self._directory / self._files[key]

    def get(self, key: str) -> Tensor:
        """Read one tensor.

        Raises:
            FileNotFoundError: the file that the index names is missing.
            ValueError: there is no such tensor, or its file is damaged or holds one that the index does not name.
        """
        if key not in self._files:
            raise ValueError(f"{self._directory}: no tensor {key}")
        path = self.file_of(key)
        if path.name not in self._shards:
            self._shards[path.name] = self._stack.enter_context(_open(path))
            self._held[path.name] = set(self._shards[path.name].keys())
            if unknown := self._held[path.name] - self.keys:
                raise ValueError(f"{path}: tensor {min(unknown)} is not in {INDEX_FILE}")
        if key not in self._held[path.name]:
            raise ValueError(f"{path}: no tensor {key}")
        tensor: Tensor = self._shards[path.name].get_tensor(key)
        return tensor


def all_keys(model: HybridModel) -> set[str]:
    """Published keys of the whole model, the experts of other processes included."""
    keys = {key for key, _ in checkpoint_slices(model)}
    for key in list(keys):
        prefix, separator, rest = key.partition(".experts.")
        if separator:
            stack = rest.partition(".")[2]
            keys |= {f"{prefix}.experts.{expert}.{stack}" for expert in range(model.config.num_experts)}
    return keys


def _copy(source: Tensor, target: Tensor, where: str) -> None:
    if source.shape != target.shape:
        raise ValueError(f"{where}: shape {tuple(source.shape)}, expected {tuple(target.shape)}")
    if source.dtype not in _DTYPES:  # of a quantised checkpoint, that means nothing without its scales
        raise ValueError(f"{where}: numbers of type {str(source.dtype).removeprefix('torch.')}")
    # NaN passes through both; `source.isfinite()` would hold a second tensor, and a third
    if not torch.stack(source.aminmax()).isfinite().all():
        raise ValueError(f"{where}: holds NaN or infinity")
    target.copy_(source)


def _open(path: Path):  # type: ignore[no-untyped-def]
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def _shard_of_key(directory: Path) -> dict[str, str]:
    """File name by key: the index's, or where there is none, of all files."""
    index = directory / INDEX_FILE
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: no weight_map")
        for key, name in weight_map.items():
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{index}: {key} lies in {name!r}, no file beside the index")
        return weight_map
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"{directory}: no safetensors file")
    keys: dict[str, str] = {}
    for path in shards:
        with _open(path) as shard:
            for key in shard.keys():  # noqa: SIM118  a handle, no dict
                if key in keys:
                    raise ValueError(f"{path}: {key} lies in {keys[key]}, too")
                keys[key] = path.name
    return keys


class CheckpointWriter:
    """Writes shards of at most `shard_bytes`, then the index and the config.

    Several processes write to one directory, each with its own `part`; afterwards one calls `finish_checkpoint` with
    all the weight maps. One shard's tensors are held in memory at a time.

    Args:
        directory: must exist.
        part: this process's number, in the shards' names.
        shard_bytes: size at which a shard is closed.
    """

    def __init__(self, directory: Path, part: int, shard_bytes: int = 5 * 2**30) -> None:
        self._directory, self._part, self._shard_bytes = directory, part, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self.weight_map: dict[str, str] = {}
        self.num_bytes = 0

    def add(self, key: str, tensor: Tensor) -> None:
        """Queue a tensor, closing the current shard if it would grow too large."""
        num_bytes = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + num_bytes > self._shard_bytes:
            self.flush()
        self._pending[key] = tensor.detach().cpu().clone()
        self._pending_bytes += num_bytes
        self.num_bytes += num_bytes

    def flush(self) -> None:
        """Write the queued tensors as one shard."""
        if not self._pending:
            return
        shard = len(set(self.weight_map.values()))
        name = f"model-{self._part:05d}-{shard:05d}.safetensors"
        save_file(self._pending, self._directory / name, metadata={"format": "pt"})
        self.weight_map.update(dict.fromkeys(self._pending, name))
        self._pending, self._pending_bytes = {}, 0


def finish_checkpoint(
    directory: Path, config: MoEConfig, dtype: torch.dtype, weight_map: dict[str, str], num_bytes: int
) -> None:
    """Write `config.json` and, last, the index that makes the checkpoint whole."""
    document = config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (directory / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n")
    index = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
