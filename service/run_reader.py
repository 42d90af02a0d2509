"""The control plane's view of a run directory: writes the spec, reads events and what comes of it.

The cluster's side is `ray_jobs.run_directory`; both follow `service.spec.event`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.errors import InvalidSettingsError
from service.spec.event import EVENTS_DIRECTORY, REPORT_FILE, SPEC_FILE, Event
from service.spec.sweep_results import REPORT_PAGE_FILE, SWEEP_FILE, SweepResults

_SEGMENT = ".jsonl"


def require_writable(runs_url: str) -> None:
    """Write a file to the root of the run directories and take it away again.

    Raises:
        InvalidSettingsError: that is not possible.
    """
    try:
        filesystem, directory = url_to_fs(runs_url)
        filesystem.makedirs(directory, exist_ok=True)
        probe = f"{directory}/.probe-{uuid.uuid4().hex}"
        filesystem.pipe_file(probe, b"")
        filesystem.rm_file(probe)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidSettingsError(f"cannot write to the run directories' root {runs_url}: {error}") from error


def write_spec(run_url: str, spec: Mapping[str, Any]) -> None:
    """Put the spec where the driver reads it; whole or not at all."""
    filesystem, directory = url_to_fs(run_url)
    filesystem.makedirs(directory, exist_ok=True)
    content, path = json.dumps(spec).encode(), f"{directory}/{SPEC_FILE}"
    if isinstance(filesystem, LocalFileSystem):
        temporary = f"{path}.{uuid.uuid4().hex}.part"
        filesystem.pipe_file(temporary, content)
        os.replace(temporary, path)
    else:
        filesystem.pipe_file(path, content)


def new_segments(run_url: str, known: Collection[str], since: str = "") -> list[str]:
    """Names of the event segments that are not known yet, in order of writing.

    Args:
        run_url: of the run directory.
        known: those that are.
        since: the first group, as of `segment_group`, that is looked at; by default all are.
    """
    filesystem, directory = url_to_fs(f"{run_url}/{EVENTS_DIRECTORY}")
    if not filesystem.exists(directory):
        return []
    names: list[str] = []
    for entry in _list(filesystem, directory):
        if entry.endswith(_SEGMENT):
            names.append(entry)
        elif entry >= since:
            names += [f"{entry}/{name}" for name in _list(filesystem, f"{directory}/{entry}")]
    return sorted(name for name in names if name.endswith(_SEGMENT) and name not in known)


def _list(filesystem: AbstractFileSystem, directory: str) -> list[str]:
    filesystem.invalidate_cache(directory)
    return [path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(directory, detail=False)]


def read_segment(run_url: str, name: str) -> list[Event]:
    """Events of a segment.

    Raises:
        ValueError: it holds what this version does not know.
    """
    filesystem, path = url_to_fs(f"{run_url}/{EVENTS_DIRECTORY}/{name}")
    return [Event.model_validate_json(line) for line in filesystem.cat_file(path).splitlines()]


def read_report(run_url: str) -> dict[str, Any] | None:
    """The outcome that the driver wrote last; None until then."""
    content = _read(run_url, REPORT_FILE)
    if content is None:
        return None
    report: dict[str, Any] = json.loads(content)
    return report


def read_lineage(run_url: str, prepared_hash: str) -> dict[str, Any] | None:
    """What a run's packed rows follow from; None when they are no longer there."""
    content = _read(run_url.rpartition("/")[0], f"prepared/packed-{prepared_hash}/lineage.json")
    return None if content is None else dict(json.loads(content))


def read_sweep(run_url: str) -> SweepResults | None:
    """What a sweep has found so far; None until it has begun."""
    content = _read(run_url, SWEEP_FILE)
    return None if content is None else SweepResults.model_validate_json(content)


def read_sweep_page(run_url: str) -> bytes | None:
    """A sweep's report as HTML; None until it is written."""
    return _read(run_url, REPORT_PAGE_FILE)


def _read(run_url: str, name: str) -> bytes | None:
    filesystem, path = url_to_fs(f"{run_url}/{name}")
    try:
        content: bytes = filesystem.cat_file(path)
    except FileNotFoundError:
        return None
    return content
