"""Finding packed data again: a `packed-<hash>` directory, or the directory of prepared data that holds one."""

from __future__ import annotations

from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from ray_jobs.data.corpus import read_manifest
from service.errors import InvalidSpecError, SourceNotFoundError


class PackedDirectory(NamedTuple):
    """Packed data on disk.

    Attributes:
        url: with `train/` and `held_out/`.
        tokenizer_url: of the tokenizer it was made with.
        manifest: of the packed data.
    """

    url: str
    tokenizer_url: str
    manifest: dict[str, Any]


def find_packed(url: str) -> PackedDirectory:
    """The packed data in or at a directory.

    Raises:
        SourceNotFoundError: there is none.
        InvalidSpecError: there are several.
    """
    filesystem, path = url_to_fs(url.rstrip("/"))
    path = path.rstrip("/")
    if not filesystem.isdir(path):
        raise SourceNotFoundError(f"no such directory: {url}")
    names = [entry.rpartition("/")[2] for entry in sorted(filesystem.ls(path, detail=False))]
    inside = [f"{path}/{name}" for name in names if name.startswith("packed-")]
    found = {place: manifest for place in [path, *inside] if (manifest := _manifest(filesystem, place)) is not None}
    if not found:
        raise SourceNotFoundError(f"{url} holds no packed data; give a directory that `sleddog data prepare` wrote to")
    if len(found) > 1:
        raise InvalidSpecError(f"{url} holds several sets of packed data, give one: {', '.join(sorted(found))}")
    [(place, manifest)] = found.items()
    prepared = place.rpartition("/")[0]
    full = filesystem.unstrip_protocol
    return PackedDirectory(full(place), full(f"{prepared}/corpus-{manifest['corpus']}/tokenizer"), manifest)


def _manifest(filesystem: Any, path: str) -> dict[str, Any] | None:
    manifest = read_manifest(filesystem.unstrip_protocol(path))
    return manifest if manifest is not None and "packing" in manifest else None
