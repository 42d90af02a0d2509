"""Training checkpoints that do not depend on how the run was spread over workers.

ZeRO gives each worker a flat piece of the fp32 master weights and of Adam's two moments. DeepSpeed saves those pieces
as they are, so its checkpoints load only on the same workers, and not at all with experts of our own. Here a worker
saves the FRAGMENTS of parameters that its piece holds, each under its parameter's global name and its place in the
flattened global parameter (a stack of experts counts as one parameter of all experts). Whoever resumes reads the ranges
it needs. Frozen parameters are not saved: they are the base's.

    shard-00003.safetensors    this worker's fragments, `<kind>/<name>@<start>`; kind: master, exp_avg, exp_avg_sq
    checkpoint.json            step, every shard's size, every parameter's fragments

Ray Train copies all workers' files into one directory at once, so a partial directory is possible: one counts as whole
only when `checkpoint.json` is there and every shard has the size it names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from fsspec.core import url_to_fs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moe.dispatch import ExpertParallel
from service.errors import CheckpointError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MANIFEST_FILE = "checkpoint.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Fragment:
    """A run of a parameter's elements that one worker's optimiser owns."""

    name: str
    start: int
    values: dict[str, Tensor]

    def key(self, kind: str) -> str:
        return f"{kind}/{self.name}@{self.start}"


@dataclass(frozen=True)
class _Place:
    """A trained parameter of this worker, and where it begins in the flattened global parameter of its name."""

    name: str
    offset: int
    parameter: nn.Parameter

    @property
    def mapping(self) -> Any:
        """DeepSpeed's link to the part that this worker's optimiser owns; None when it owns none of it."""
        return self.parameter._hp_mapping  # type: ignore[attr-defined]  # noqa: SLF001


def saved_step(directory: Path | str) -> int | None:
    """Optimiser steps done when a checkpoint was written.

    Args:
        directory: path or URL.

    Returns:
        None unless every file is there at its full size: a checkpoint may be cut short, or be deleted meanwhile.
    """
    filesystem, path = url_to_fs(str(directory))
    filesystem.invalidate_cache(path)
    sizes = {file.rpartition("/")[2]: info["size"] for file, info in filesystem.find(path, detail=True).items()}
    try:
        manifest = json.loads(filesystem.cat_file(f"{path}/{MANIFEST_FILE}"))
        step: int = manifest["step"]
        is_whole = all(sizes.get(name) == size for name, size in manifest["shards"].items())
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return step if is_whole else None


def save_checkpoint(engine: DeepSpeedEngine, directory: Path, step: int) -> None:
    """Write this worker's files; all workers must call, each with its own or the same directory.

    Args:
        engine: the trained engine, between steps.
        directory: exists.
        step: optimiser steps done.
    """
    fragments = list(_owned_fragments(engine))
    name = f"shard-{dist.get_rank():05d}.safetensors"
    tensors = {fragment.key(kind): value for fragment in fragments for kind, value in fragment.values.items()}
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, directory / name)
    mine = {
        "shard": name,
        "bytes": os.path.getsize(directory / name),
        "fragments": [(fragment.name, fragment.start, fragment.values["master"].numel()) for fragment in fragments],
    }
    everyone: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        _write_manifest(directory, step, everyone)


def _write_manifest(directory: Path, step: int, workers: list[dict[str, Any]]) -> None:
    parameters: dict[str, list[list[Any]]] = {}
    for worker in workers:
        for name, start, length in worker["fragments"]:
            parameters.setdefault(name, []).append([start, length, worker["shard"]])
    document = {
        "step": step,
        "shards": {worker["shard"]: worker["bytes"] for worker in workers},
        "parameters": {name: sorted(fragments) for name, fragments in sorted(parameters.items())},
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(document))


def load_checkpoint(engine: DeepSpeedEngine, directory: Path) -> int:
    """Restore weights, master weights and moments, on any number of workers; each calls for itself.

    Args:
        engine: freshly built, same architecture and same frozen parts.
        directory: as every worker sees it.

    Returns:
        Optimiser steps done.

    Raises:
        FileNotFoundError: files are missing or cut short, perhaps since a moment ago; the engine may be half restored.
        CheckpointError: the checkpoint is another model's.
    """
    if saved_step(directory) is None:
        raise FileNotFoundError(f"{directory} is no whole checkpoint: files are missing or cut short")
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    optimizer = engine.optimizer.optimizer
    for partition in engine.optimizer.single_partition_of_fp32_groups:
        optimizer.state[partition] = {
            # fused AdamW wants it beside the weights
            "step": torch.tensor(float(manifest["step"]), device=partition.device),
            **{kind: torch.zeros_like(partition) for kind in MOMENTS},
        }
    with _Reader(directory, manifest["parameters"]) as reader, torch.no_grad():
        for place in _trained_parameters(engine.module):
            weights = reader.read("master", place.name, place.offset, place.parameter.numel())
            place.parameter.copy_(weights.view_as(place.parameter))
            _restore_fragment(optimizer, place, weights, reader)
    return int(manifest["step"])


def _restore_fragment(optimizer: torch.optim.Optimizer, place: _Place, weights: Tensor, reader: _Reader) -> None:
    mapping = place.mapping
    if mapping is None:
        return
    mine, within = mapping.lp_fragment_address, mapping.hp_fragment_address
    mapping.hp_fragment.copy_(weights.narrow(0, mine.start, mine.numel))
    state = optimizer.state[_partition_of(optimizer, mapping)]
    for kind in MOMENTS:
        moment = reader.read(kind, place.name, place.offset + mine.start, mine.numel)
        state[kind].narrow(0, within.start, within.numel).copy_(moment)


def _partition_of(optimizer: torch.optim.Optimizer, mapping: Any) -> Tensor:
    partition: Tensor = optimizer.param_groups[mapping.param_group_index]["params"][0]
    return partition


def _owned_fragments(engine: DeepSpeedEngine) -> Iterator[_Fragment]:
    optimizer = engine.optimizer.optimizer
    for place in _trained_parameters(engine.module):
        mapping = place.mapping
        if mapping is None:
            continue
        within, state = mapping.hp_fragment_address, optimizer.state[_partition_of(optimizer, mapping)]
        values = {kind: state[kind].narrow(0, within.start, within.numel) for kind in MOMENTS}
        values["master"] = mapping.hp_fragment
        yield _Fragment(place.name, place.offset + mapping.lp_fragment_address.start, values)


def _trained_parameters(step: nn.Module) -> Iterator[_Place]:
    parallel: ExpertParallel = step.model.parallel  # type: ignore[assignment, union-attr]
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            yield _Place(name, parallel.rank * parameter.numel() if ".experts." in name else 0, parameter)


class _Reader:
    """Reads ranges of flattened global parameters, whichever shards hold them."""

    def __init__(self, directory: Path, parameters: dict[str, list[list[Any]]]) -> None:
        self._directory, self._parameters = directory, parameters
        self._stack = ExitStack()
        self._shards: dict[str, Any] = {}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of a parameter, flat fp32."""
        pieces: list[Tensor] = []
        position, end = start, start + length
        for piece_start, piece_length, shard in self._parameters.get(name, []):
            if piece_start <= position < piece_start + piece_length and position < end:
                stop = min(end, piece_start + piece_length)
                stored = self._open(shard).get_slice(f"{kind}/{name}@{piece_start}")
                pieces.append(stored[position - piece_start : stop - piece_start])
                position = stop
        if position != end:
            raise CheckpointError(f"{self._directory} holds no elements {position} to {end} of {name}")
        return torch.cat(pieces)

    def _open(self, shard: str) -> Any:
        if shard not in self._shards:
            self._shards[shard] = self._stack.enter_context(safe_open(self._directory / shard, framework="pt"))
        return self._shards[shard]
