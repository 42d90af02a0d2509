"""Files of a run directory as the control plane hands them out: checkpoints that are whole, and artifacts.

An artifact is any file that a run leaves for people: not its events, checkpoints or spec, which have routes of their
own, nor marks of what was started, nor an export before it is committed. A path is taken as it is, or not at all: no
`..`, no way out over a link.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.errors import NotFoundError
from service.spec.event import ATTEMPTS_DIRECTORY, EVENTS_DIRECTORY, SPEC_FILE
from service.spec.outcomes import Artifact, Checkpoint

CHECKPOINTS_DIRECTORY, CHECKPOINT_FILE = "checkpoints", "checkpoint.json"
_EXPORTS_DIRECTORY = "exports"
_NOT_ARTIFACTS = (ATTEMPTS_DIRECTORY, EVENTS_DIRECTORY, CHECKPOINTS_DIRECTORY, SPEC_FILE, "ray_train")
_ATTEMPT = re.compile(r"attempt-(\d+)")
_CHUNK_BYTES = 1 << 20


def list_checkpoints(run_url: str) -> list[Checkpoint]:
    """Whole checkpoints, the one with the most steps first."""
    filesystem, root = _open(f"{run_url}/{CHECKPOINTS_DIRECTORY}")
    found = []
    for path, info in _files(filesystem, root).items():
        if path.endswith(f"/{CHECKPOINT_FILE}"):
            found.append(_checkpoint(filesystem, root, path.rpartition("/")[0], info))
    return sorted((item for item in found if item is not None), key=lambda item: item.step, reverse=True)


def _checkpoint(filesystem: AbstractFileSystem, root: str, path: str, info: dict[str, Any]) -> Checkpoint | None:
    """None when it has been removed meanwhile, or is not whole."""
    attempt = _ATTEMPT.match(path)
    try:
        manifest = json.loads(filesystem.cat_file(f"{root}/{path}/{CHECKPOINT_FILE}"))
        sizes = {name: filesystem.size(f"{root}/{path}/{name}") for name in manifest["shards"]}
    except FileNotFoundError:
        return None
    if attempt is None or sizes != {name: shard["bytes"] for name, shard in manifest["shards"].items()}:
        return None
    return Checkpoint(
        path=path,
        attempt=int(attempt[1]),
        step=manifest["state"]["step"],
        num_bytes=sum(sizes.values()) + info["size"],
        num_shards=len(sizes),
    )


def list_artifacts(run_url: str) -> list[Artifact]:
    """All artifacts of a run, by path."""
    filesystem, root = _open(run_url)
    files = _files(filesystem, root)
    names = [name for name in files if _is_artifact(name, files)]
    return [Artifact(path=name, num_bytes=files[name]["size"]) for name in sorted(names)]


def _is_artifact(path: str, files: dict[str, Any]) -> bool:
    top, *below = path.split("/")
    if top in _NOT_ARTIFACTS or path.endswith(".part"):
        return False
    is_in_export = top == _EXPORTS_DIRECTORY and len(below) > 1
    return not is_in_export or f"{_EXPORTS_DIRECTORY}/{below[0]}.json" in files


@dataclass(frozen=True)
class OpenArtifact:
    """An artifact that can be read.

    Attributes:
        name: the last part of its path.
        num_bytes: its size.
        version: changes when the content does.
    """

    filesystem: AbstractFileSystem
    location: str
    name: str
    num_bytes: int
    version: str

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, in parts."""
        with self.filesystem.open(self.location, "rb") as file:
            file.seek(start)
            while start < end and (part := file.read(min(_CHUNK_BYTES, end - start))):
                start += len(part)
                yield part


def find_artifact(run_url: str, path: str) -> OpenArtifact:
    """An artifact by its path.

    Raises:
        NotFoundError: there is none of this path, or it leads elsewhere.
    """
    filesystem, root = _open(run_url)
    parts = path.split("/")
    location = f"{root}/{path}"
    is_odd = any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path
    if (
        is_odd
        or parts[0] in _NOT_ARTIFACTS
        or not filesystem.isfile(location)
        or _leads_out(filesystem, root, location)
    ):
        raise NotFoundError(f"the run has no artifact {path!r}")
    if not _is_artifact(path, _commit_of(filesystem, root, parts)):
        raise NotFoundError(f"the export that {path!r} is of is not whole yet")
    size = filesystem.size(location)
    return OpenArtifact(filesystem, location, parts[-1], size, filesystem.ukey(location)[:32])


def _commit_of(filesystem: AbstractFileSystem, root: str, parts: list[str]) -> dict[str, Any]:
    """The file that says that an export is whole, if it is there."""
    name = f"{_EXPORTS_DIRECTORY}/{parts[1]}.json" if len(parts) > 1 else ""
    return {name: None} if name and filesystem.isfile(f"{root}/{name}") else {}


def _leads_out(filesystem: AbstractFileSystem, root: str, location: str) -> bool:
    """Whether a link leads out of the run directory; other filesystems have none."""
    if not isinstance(filesystem, LocalFileSystem):
        return False
    inside = os.path.realpath(root)
    return os.path.commonpath((inside, os.path.realpath(location))) != inside


def remove_run(run_url: str) -> None:
    """Delete a run directory; safe to repeat."""
    filesystem, root = _open(run_url)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    filesystem, path = url_to_fs(url)
    filesystem.invalidate_cache()
    return filesystem, path


def _files(filesystem: AbstractFileSystem, root: str) -> dict[str, dict[str, Any]]:
    """What lies below a directory, by path within it; nothing where there is no such directory."""
    found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    return {path[len(root.rstrip("/")) + 1 :]: info for path, info in found.items()}
