"""What can be known before a job or a sweep is accepted: that the files it names exist, and that it can ever find room.

Files are looked for where the cluster sees the same ones as the control plane; elsewhere the first stage finds out. A
cluster of fixed size refuses what it will never have room for; on one that may grow, workers that find none within
`parallel.placement_timeout_s` end the job, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from fsspec.core import url_to_fs
from pydantic import JsonValue

from service.backends.base import Backend
from service.errors import InvalidSpecError, SourceNotFoundError
from service.spec.axes import ChoiceAxis, FieldAxis
from service.spec.job import JobSpec
from service.spec.model import CheckpointBase, PretrainedTokenizer
from service.spec.outcomes import SourceCheck
from service.spec.source import SourceSpec
from service.spec.sweep import SweepSpec, changed
from service.uri_policy import UriPolicy


def require_possible(spec: JobSpec | SweepSpec, backend: Backend, policy: UriPolicy) -> None:
    """Look for what a job, or each job that a sweep may run, needs, where it may.

    Raises:
        SourceNotFoundError: a file is missing; with the field's path.
        InvalidSpecError: it names what is not allowed, or its workers will never find room; with the field's path.
    """
    for prefix, job, is_run in _jobs_of(spec):
        try:
            policy.require_allowed(job.model_dump(mode="json"))
            _require_files(job, backend)
            if is_run:
                _require_room(job, backend)
        except (SourceNotFoundError, InvalidSpecError) as error:
            raise type(error)(error.message, f"{prefix}{error.field}") from None


def _jobs_of(spec: JobSpec | SweepSpec) -> Iterator[tuple[str, JobSpec, bool]]:
    """The path to each job that a spec describes, the job, and whether it is run with these workers.

    A sweep runs what its stages make of the base job, which itself may be for a larger cluster.
    """
    if isinstance(spec, JobSpec):
        yield "", spec, True
        return
    yield "base.", spec.base, False
    for number, stage in enumerate(spec.stages):
        yield f"stages.{number}.changes.", changed(spec.base, stage.changes), True
    for number, axis in enumerate(spec.axes.fields):
        for name, value in _values(axis):
            path = f"axes.fields.{number}.{name}."
            yield path, changed(spec.base, {axis.path: value}), False
            for stage in spec.stages:
                yield path, changed(spec.base, {**stage.changes, axis.path: value}), True


def _values(axis: FieldAxis) -> Iterator[tuple[str, JsonValue]]:
    """Of an axis, with their paths in it: of an interval its ends."""
    if isinstance(axis, ChoiceAxis):
        yield from ((f"values.{choice}", value) for choice, value in enumerate(axis.values))
    else:
        yield from (("low", axis.low), ("high", axis.high))


def _require_room(spec: JobSpec, backend: Backend) -> None:
    parallel = spec.parallel
    needed = (parallel.min_workers or parallel.num_workers) * parallel.cpus_per_worker
    if backend.max_cpus is not None and needed > backend.max_cpus:
        raise InvalidSpecError(
            f"the workers need {needed:g} CPUs at once, and the cluster has {backend.max_cpus:g}",
            "parallel.num_workers",
        )


def check_files(spec: JobSpec, backend: Backend) -> list[SourceCheck]:
    """What a job reads, and how much of it there is, as far as the control plane can see.

    Raises:
        SourceNotFoundError: a file is missing; with the field's path.
    """
    return [_check_file(url, field, is_seen=backend.shares_filesystem) for field, url in _files_of(spec)]


def _require_files(spec: JobSpec, backend: Backend) -> None:
    if backend.shares_filesystem:
        for field, url in _files_of(spec):
            _find_files(url, field)


def _files_of(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Fields that name files, and their URLs."""
    for index, source in enumerate(spec.data.sources):
        if isinstance(source, SourceSpec):
            yield f"data.sources.{index}.uri", source.uri
    for index, benchmark in enumerate(spec.data.decontaminate.against if spec.data.decontaminate else ()):
        yield f"data.decontaminate.against.{index}.uri", benchmark.uri
    if isinstance(spec.model.base, CheckpointBase):
        yield "model.base.path", f"{spec.model.base.path}/config.json"
    if isinstance(spec.model.tokenizer, PretrainedTokenizer):
        yield "model.tokenizer.path", f"{spec.model.tokenizer.path}/tokenizer.json"


def _check_file(url: str, field: str, *, is_seen: bool) -> SourceCheck:
    found = _find_files(url, field) if is_seen else None
    if found is None:
        return SourceCheck(field=field, url=url, status="not_checked")
    return SourceCheck(field=field, url=url, status="found", num_files=len(found), num_bytes=sum(found))


def _find_files(url: str, field: str) -> list[int] | None:
    """Sizes of the local files that a URL stands for; None where it is not local.

    Raises:
        SourceNotFoundError: there is none.
    """
    if not url.startswith(("file://", "/")):
        return None
    filesystem, path = url_to_fs(url)
    paths = (
        [path] if filesystem.isfile(path) else [match for match in filesystem.glob(path) if filesystem.isfile(match)]
    )
    if not paths:
        raise SourceNotFoundError(f"no such file: {path}", field)
    return [filesystem.size(match) for match in paths]
