"""Where a worker group goes on: at the newest whole checkpoint of any attempt.

Looked for at every start of the group, by our own manifests. An earlier attempt can live on as an orphan for a while
after a lost head: it goes on to write checkpoints, good ones, and to delete its older ones, perhaps the very one that
is about to be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from fsspec.core import url_to_fs

from ray_jobs.run_directory import local_directory
from ray_jobs.train.checkpoint import MANIFEST_FILE, load_checkpoint, saved_step

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


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
        if name == MANIFEST_FILE and (step := saved_step(filesystem.unstrip_protocol(directory))) is not None:
            steps[filesystem.unstrip_protocol(directory)] = step
    return sorted(steps, key=lambda checkpoint: steps[checkpoint], reverse=True)


def resume(engine: DeepSpeedEngine, url: str) -> int:
    """Load the newest whole checkpoint; all workers must call, and all load the same one.

    Worker 0 looks for all. A checkpoint that vanishes on any worker while it is read is passed over by every one.

    Args:
        engine: freshly built.
        url: as for `checkpoints_newest_first`.

    Returns:
        Optimiser steps done; 0 where there is no checkpoint, the engine being untouched then.

    Raises:
        FileNotFoundError: there were some, but all vanished; the group's next start looks anew.
        CheckpointError: the newest one is another model's.
    """
    found: list[Any] = [checkpoints_newest_first(url) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    for checkpoint in found[0]:
        steps: list[int | None] = [None] * dist.get_world_size()
        dist.all_gather_object(steps, _load_unless_gone(engine, checkpoint))
        if (step := steps[0]) is not None and None not in steps:
            return step
    if found[0]:
        raise FileNotFoundError(f"{url}: every checkpoint vanished while it was read")
    return 0


def _load_unless_gone(engine: DeepSpeedEngine, url: str) -> int | None:
    try:
        with local_directory(url) as directory:
            return load_checkpoint(engine, Path(directory))
    except FileNotFoundError:
        return None
