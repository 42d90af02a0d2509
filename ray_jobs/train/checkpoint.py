"""Training checkpoints that do not depend on how the run was spread over workers.

ZeRO gives each worker a flat piece of the fp32 master weights and of Adam's two moments. DeepSpeed saves those pieces
as they are, so its checkpoints load only on the same workers, and not at all with experts of our own. Here a worker
saves the FRAGMENTS of parameters that its piece holds, each under its parameter's global name and its place in the
flattened global parameter (a stack of experts counts as one parameter of all experts). Whoever resumes reads the ranges
it needs, and nothing else. Frozen parameters are not saved: they are the base's.

    shard-00003.safetensors    this worker's fragments, `<kind>/<name>@<start>`; kind: master, exp_avg, exp_avg_sq
    checkpoint.json            state, every shard's size and SHA-256, every parameter's fragments

Each worker writes its own shard, so a partial directory is possible: one counts as whole only when `checkpoint.json`,
which is written last, is there and every shard has the size it names. What the shards hold is compared with their
hashes before any of it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from torch import Tensor, nn

from moe.dispatch import ExpertParallel
from ray_jobs.run_directory import write_file
from service.errors import CheckpointError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MANIFEST_FILE = "checkpoint.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
_FP32_BYTES = 4
_HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class TrainingState:
    """How far a run is, beside weights and moments.

    Attributes:
        step: global batches done.
        updates: of the weights; fewer than `step` where steps were skipped.
        skipped_in_a_row: steps skipped since the last update.
    """

    step: int = 0
    updates: int = 0
    skipped_in_a_row: int = 0

    def after(self, *, skipped: bool) -> TrainingState:
        """The state one step later."""
        if skipped:
            return TrainingState(self.step + 1, self.updates, self.skipped_in_a_row + 1)
        return TrainingState(self.step + 1, self.updates + 1)


@dataclass(frozen=True)
class Manifest:
    """What `checkpoint.json` says.

    Attributes:
        state: at the time of the checkpoint.
        data: `ray_jobs.train.cursor.data_cursor`, which tells the rows that it has trained on.
        shards: size in bytes and SHA-256 of each shard, by name.
        parameters: of each trained parameter the fragments: start, length, shard; sorted.
    """

    state: TrainingState
    data: dict[str, Any]
    shards: dict[str, dict[str, Any]]
    parameters: dict[str, list[list[Any]]]


@dataclass(frozen=True)
class Snapshot:
    """A worker's fragments in memory that training does not touch.

    Attributes:
        tensors: by their keys in the shard.
        fragments: name of the parameter, start, length.
    """

    tensors: dict[str, Tensor]
    fragments: list[tuple[str, int, int]]


@dataclass(frozen=True)
class WrittenShard:
    """What a worker has written.

    Attributes:
        name: of the file.
        bytes: its size.
        sha256: of its content, in hex.
        fragments: as in `Snapshot`.
    """

    name: str
    bytes: int
    sha256: str
    fragments: list[tuple[str, int, int]]


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


def read_manifest(url: str) -> Manifest | None:
    """The manifest of a whole checkpoint.

    Args:
        url: of its directory.

    Returns:
        None unless every file is there at its full size: a checkpoint may be cut short, or be deleted meanwhile.
    """
    filesystem, path = url_to_fs(url)
    filesystem.invalidate_cache(path)
    sizes = {file.rpartition("/")[2]: info["size"] for file, info in filesystem.find(path, detail=True).items()}
    try:
        document = json.loads(filesystem.cat_file(f"{path}/{MANIFEST_FILE}"))
        manifest = Manifest(**document | {"state": TrainingState(**document["state"])})
        is_whole = all(sizes.get(name) == shard["bytes"] for name, shard in manifest.shards.items())
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return manifest if is_whole else None


def write_manifest(url: str, state: TrainingState, data: dict[str, Any], shards: Sequence[WrittenShard]) -> None:
    """Make a checkpoint whole, all of its shards being there."""
    parameters: dict[str, list[list[Any]]] = {}
    for shard in shards:
        for name, start, length in shard.fragments:
            parameters.setdefault(name, []).append([start, length, shard.name])
    manifest = Manifest(
        state,
        data,
        {shard.name: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards},
        {name: sorted(fragments) for name, fragments in sorted(parameters.items())},
    )
    write_file(f"{url}/{MANIFEST_FILE}", json.dumps(asdict(manifest)).encode())


def take_snapshot(engine: DeepSpeedEngine) -> Snapshot:
    """Copy what this worker saves; no step may be under way."""
    optimizer = engine.optimizer.optimizer
    tensors: dict[str, Tensor] = {}
    fragments = []
    for place in _trained_parameters(engine.module):
        mapping = place.mapping
        if mapping is None:
            continue
        within, state = mapping.hp_fragment_address, optimizer.state[_partition_of(optimizer, mapping)]
        start = place.offset + mapping.lp_fragment_address.start
        values = {kind: state[kind].narrow(0, within.start, within.numel) for kind in MOMENTS}
        values["master"] = mapping.hp_fragment
        for kind, value in values.items():
            tensors[f"{kind}/{place.name}@{start}"] = value.detach().to("cpu", copy=True)
        fragments.append((place.name, start, within.numel))
    return Snapshot(tensors, fragments)


def write_shard(snapshot: Snapshot, url: str, rank: int) -> WrittenShard:
    """Write a worker's file, in the format of safetensors, whose own writer knows local files only.

    Args:
        snapshot: its fragments.
        url: the checkpoint's directory; need not exist.
        rank: the worker's.
    """
    name = f"shard-{rank:05d}.safetensors"
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in snapshot.tensors.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    contents = (tensor.numpy().view(np.uint8).data for tensor in snapshot.tensors.values())
    filesystem, directory = url_to_fs(url)
    filesystem.makedirs(directory, exist_ok=True)
    digest, num_bytes = hashlib.sha256(), 0
    with filesystem.open(f"{directory}/{name}", "wb") as file:
        parts: Iterator[bytes | memoryview] = chain((len(encoded).to_bytes(8, "little"), encoded), contents)
        for part in parts:
            file.write(part)
            digest.update(part)
            num_bytes += len(part)
    return WrittenShard(name, num_bytes, digest.hexdigest(), snapshot.fragments)


def damaged_shards(url: str, manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Which of some shards do not hold what was written.

    Raises:
        FileNotFoundError: one is gone.
    """
    filesystem, directory = url_to_fs(url)
    return [name for name in names if _sha256(filesystem, f"{directory}/{name}") != manifest.shards[name]["sha256"]]


def _sha256(filesystem: AbstractFileSystem, path: str) -> str:
    digest = hashlib.sha256()
    with filesystem.open(path, "rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def load_checkpoint(engine: DeepSpeedEngine, url: str) -> Manifest:
    """Restore weights, master weights and moments, on any number of workers; each calls for itself.

    Args:
        engine: freshly built, same architecture and same frozen parts.
        url: the checkpoint's directory.

    Returns:
        The checkpoint's manifest.

    Raises:
        FileNotFoundError: files are missing or cut short, perhaps since a moment ago; the engine may be half restored.
        CheckpointError: the checkpoint is another model's.
    """
    manifest = read_manifest(url)
    if manifest is None:
        raise FileNotFoundError(f"{url} is no whole checkpoint: files are missing or cut short")
    optimizer = engine.optimizer.optimizer
    for partition in engine.optimizer.single_partition_of_fp32_groups:
        optimizer.state[partition] = {
            # fused AdamW wants it beside the weights
            "step": torch.tensor(float(manifest.state.updates), device=partition.device),
            **{kind: torch.zeros_like(partition) for kind in MOMENTS},
        }
    reader = _Reader(url, manifest)
    with torch.no_grad():
        for place in _trained_parameters(engine.module):
            weights = reader.read("master", place.name, place.offset, place.parameter.numel())
            place.parameter.copy_(weights.view_as(place.parameter))
            _restore_fragment(optimizer, place, weights, reader)
    return manifest


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


def _trained_parameters(step: nn.Module) -> Iterator[_Place]:
    parallel: ExpertParallel = step.model.parallel  # type: ignore[assignment, union-attr]
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            yield _Place(name, parallel.rank * parameter.numel() if ".experts." in name else 0, parameter)


class _Reader:
    """Reads ranges of flattened global parameters, whichever shards hold them."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self._url, self._parameters = url, manifest.parameters
        self._shards: dict[str, _Shard] = {}

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of a parameter, flat fp32."""
        pieces: list[Tensor] = []
        position, end = start, start + length
        for piece_start, piece_length, shard in self._parameters.get(name, []):
            if piece_start <= position < piece_start + piece_length and position < end:
                stop = min(end, piece_start + piece_length)
                key = f"{kind}/{name}@{piece_start}"
                pieces.append(self._shard(shard).read(key, position - piece_start, stop - piece_start))
                position = stop
        if position != end:
            raise CheckpointError(f"{self._url} holds no elements {position} to {end} of {name}")
        return torch.cat(pieces)

    def _shard(self, name: str) -> _Shard:
        if name not in self._shards:
            self._shards[name] = _Shard(f"{self._url}/{name}")
        return self._shards[name]


class _Shard:
    """Ranges of the flat fp32 tensors of a safetensors file, on any filesystem.

    Such a file is eight bytes of length, a header in JSON, then the tensors (huggingface.co/docs/safetensors).
    """

    def __init__(self, url: str) -> None:
        self._filesystem, self._path = url_to_fs(url)
        length = int.from_bytes(self._filesystem.cat_file(self._path, 0, 8), "little")
        self._header = json.loads(self._filesystem.cat_file(self._path, 8, 8 + length))
        self._start = 8 + length

    def read(self, key: str, start: int, stop: int) -> Tensor:
        first = self._start + self._header[key]["data_offsets"][0]
        content = self._filesystem.cat_file(self._path, first + start * _FP32_BYTES, first + stop * _FP32_BYTES)
        return torch.frombuffer(bytearray(content), dtype=torch.float32)
