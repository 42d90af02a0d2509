"""What prepared data follows from: `lineage.json` beside the manifest.

A prepared directory is named by the hash of all that decides its content; here that is spelled out, with the versions
of what computed it. Whoever gives the same files, spec, seed and versions gets the same bytes. No path is in it: two
directories with equal data have equal lineages.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

from fsspec.core import url_to_fs

from ray_jobs.run_directory import write_file
from service.rows.sources import digest

LINEAGE_FILE = "lineage.json"
PACKAGES = ("datasketch", "jinja2", "numpy", "pyarrow", "ray", "tokenizers", "transformers")
"""Those whose code decides what is read, removed, tokenised, packed or written."""


def identity(decided_by: dict[str, Any]) -> str:
    """Hash of all that decides a prepared directory, for its name."""
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()[:16]


def write_lineage(url: str, decided_by: dict[str, Any], **more: Any) -> None:
    """Write a directory's lineage; its manifest comes after.

    Args:
        url: of the directory.
        decided_by: what `identity` names it by.
        **more: what else belongs to it.
    """
    document = {
        "hash": identity(decided_by),
        "decided_by": decided_by,
        "project": {"sleddog": version("sleddog")},
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        **more,
    }
    write_file(f"{url}/{LINEAGE_FILE}", json.dumps(document, indent=2, allow_nan=False).encode())


def read_lineage(url: str) -> dict[str, Any]:
    """A prepared directory's lineage."""
    filesystem, path = url_to_fs(f"{url}/{LINEAGE_FILE}")
    document: dict[str, Any] = json.loads(filesystem.cat_file(path))
    return document


def directory_digests(url: str) -> dict[str, str]:
    """SHA-256 of each file of a directory, by name."""
    filesystem, path = url_to_fs(url)
    paths = sorted(filesystem.ls(path, detail=False))
    return {file.rpartition("/")[2]: digest(filesystem.unstrip_protocol(file)) for file in paths}
