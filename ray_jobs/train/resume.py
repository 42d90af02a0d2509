"""Where a worker group goes on: at the newest whole checkpoint of any attempt.

Looked for at every start of the group, by our own manifests. An earlier attempt can live on as an orphan for a while
after a lost head: it goes on to write checkpoints, good ones, and to delete its older ones, perhaps the very one that
is about to be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from fsspec.core import url_to_fs

from ray_jobs.train.checkpoint import (
    MANIFEST_FILE,
    Manifest,
    TrainingState,
    damaged_shards,
    load_checkpoint,
    read_manifest,
)
from service.errors import CheckpointError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Resumed:
    """Where the workers go on.

    Attributes:
        state: of the checkpoint; of a run that begins where there is none.
        cursor: of the rows that the checkpoint has trained on; None where there is none.
        damaged: URLs of newer ones whose content is not what was written.
    """

    state: TrainingState
    cursor: dict[str, Any] | None
    damaged: tuple[str, ...]


def checkpoints_newest_first(url: str) -> list[str]:
    """URLs of all whole checkpoints, the one with the most steps first.

    Args:
        url: holds `<attempt>/<checkpoint>/`; need not exist.
    """
    filesystem, root = url_to_fs(url)
    filesystem.invalidate_cache()
    steps: dict[str, int] = {}
    for path in filesystem.find(root, maxdepth=3):
        directory, _, name = path.rpartition("/")
        if name == MANIFEST_FILE:
            checkpoint = filesystem.unstrip_protocol(directory)
            if (manifest := read_manifest(checkpoint)) is not None:
                steps[checkpoint] = manifest.state.step
    return sorted(steps, key=lambda checkpoint: steps[checkpoint], reverse=True)


def resume(engine: DeepSpeedEngine, url: str) -> Resumed:
    """Load the newest whole checkpoint; all workers must call, and all load the same one.

    Worker 0 looks for all. A checkpoint that is damaged, or vanishes on any worker while it is read, is passed over by
    every one. Each worker reads an equal part of the shards to compare them with their hashes.

    Args:
        engine: freshly built; untouched where there is no checkpoint.
        url: as for `checkpoints_newest_first`.

    Raises:
        FileNotFoundError: there were some, but all vanished; the group's next start looks anew.
        CheckpointError: the newest one is another model's, or the only ones are damaged.
    """
    found: list[Any] = [checkpoints_newest_first(url) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    damaged: list[str] = []
    for checkpoint in found[0]:
        verdicts = _everyone(_is_intact(checkpoint))
        if False in verdicts:
            damaged.append(checkpoint)
        elif None not in verdicts:
            manifest = _load_unless_gone(engine, checkpoint)
            if all(_everyone(manifest is not None)):
                assert manifest is not None
                return Resumed(manifest.state, manifest.data, tuple(damaged))
    if damaged:
        raise CheckpointError(f"all checkpoints are damaged: {', '.join(damaged)}; delete them to begin anew")
    if found[0]:
        raise FileNotFoundError(f"{url}: every checkpoint vanished while it was read")
    return Resumed(TrainingState(), None, ())


def _everyone(mine: Any) -> list[Any]:
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, mine)
    return answers


def _is_intact(url: str) -> bool | None:
    """Whether this worker's part of the shards is what was written; None when some are gone."""
    manifest = read_manifest(url)
    if manifest is None:
        return None
    names = sorted(manifest.shards)[dist.get_rank() :: dist.get_world_size()]
    try:
        return not damaged_shards(url, manifest, names)
    except FileNotFoundError:
        return None


def _load_unless_gone(engine: DeepSpeedEngine, url: str) -> Manifest | None:
    try:
        return load_checkpoint(engine, url)
    except FileNotFoundError:
        return None
