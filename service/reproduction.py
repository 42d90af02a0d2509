"""A job to be run again: its spec as it stood, held to the data that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TypeVar

from pydantic import ValidationError

from service.comparison import differences
from service.errors import OutdatedSpecError
from service.spec.base import field_errors
from service.spec.job import JobSpec
from service.spec.outcomes import Reproduction
from service.spec.resources import Job, Run
from service.spec.sweep import SweepSpec

AnySpec = TypeVar("AnySpec", JobSpec, SweepSpec)


def build_reproduction(
    job: Job, lineage: Mapping[str, Any] | None, environment: Mapping[str, Any] | None
) -> Reproduction:
    """The job that does again what a job did.

    Args:
        job: the one to reproduce.
        lineage: of its prepared data; None when it prepared none, or that is gone.
        environment: what its export tells of the machine, if there is one.

    Raises:
        OutdatedSpecError: this version does not take its spec.
    """
    spec = todays_spec(job)
    prepared_hash = None if lineage is None else str(lineage["hash"])
    pinned = spec.model_copy(update={"data": spec.data.model_copy(update={"expected_hash": prepared_hash})})
    versions = _versions(lineage or {}, environment or {})
    return Reproduction(
        spec=pinned,
        prepared_hash=prepared_hash,
        seeds={"job": spec.seed, "data": spec.seed if spec.data.seed is None else spec.data.seed},
        versions=versions,
        differences=_differences(job, spec, versions, lineage),
    )


def todays_spec(job: Job) -> JobSpec:
    """A job's spec, as this version reads it.

    Raises:
        OutdatedSpecError: this version does not take it.
    """
    return _read(JobSpec, job)


def require_taken(run: Run) -> None:
    """Check that a driver of this version will take a run's spec.

    Raises:
        OutdatedSpecError: it will not.
    """
    if run.kind == "sweep":
        _read(SweepSpec, run)
    else:
        _read(JobSpec, run)


def _read(kind: type[AnySpec], run: Run) -> AnySpec:
    try:
        return kind.model_validate(run.spec)
    except ValidationError as error:
        first, *others = field_errors(error.errors(), run.spec)
        further = "".join(f"; {fault.field}: {fault.message}" for fault in others)
        message = f"{first.message}{further}. {run.id} was posted to another version; post a changed spec as a new one"
        raise OutdatedSpecError(message, first.field) from None


def _versions(lineage: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    project = lineage.get("project", {})
    python = {"python": lineage["python"]} if "python" in lineage else {}
    return {**project, **python, **lineage.get("packages", {}), **environment.get("versions", {})}


def _differences(job: Job, spec: JobSpec, versions: Mapping[str, str], lineage: Mapping[str, Any] | None) -> list[str]:
    told = []
    if lineage is None:
        told.append("its prepared data is not to be found, so the data's hash is not required")
    if (then := versions.get("sleddog")) is not None and then != version("sleddog"):
        told.append(f"it ran with sleddog {then}; this is {version('sleddog')}")
    return told + [
        f"{item.path} was not there when it was posted; it has today's default {item.right!r}"
        for item in differences(job.spec, spec.model_dump(mode="json"))
    ]
