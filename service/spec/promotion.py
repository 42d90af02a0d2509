"""From a sweep's candidate to the job that trains it at full length."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue, ValidationError

from service.errors import InvalidSpecError, NotFoundError
from service.spec.base import field_errors
from service.spec.job import JobSpec
from service.spec.resources import Resource
from service.spec.sweep import SweepSpec, changed
from service.spec.sweep_results import Candidate, SweepResults


class Promotion(Resource):
    """A candidate, and its job."""

    candidate: Candidate
    job: JobSpec
    """Ready to be posted."""


def changes_of(
    base: JobSpec, mixture: Mapping[str, float] | None, fields: Mapping[str, JsonValue], left_out: str | None
) -> dict[str, JsonValue]:
    """What a candidate changes in the base job, by dotted path.

    How often a category may be repeated, and its cap, stay as in the base job's mix.

    Args:
        base: the job.
        mixture: share by category; None leaves the base job's.
        fields: values of the further axes, by dotted path.
        left_out: the source that it does without.
    """
    changes: dict[str, JsonValue] = dict(fields)
    if left_out is not None:
        changes["data.leave_out"] = [*base.data.leave_out, left_out]
    if mixture is not None:
        limits = {category: share.model_dump() for category, share in (base.data.mixture or {}).items()}
        changes["data.mixture"] = {
            category: limits.get(category, {}) | {"share": share} for category, share in mixture.items()
        }
    return changes


def job_of_candidate(spec: SweepSpec, candidate: Candidate) -> JobSpec:
    """The base job, on its own model and for its own number of steps, with a candidate's mix and other values.

    Raises:
        InvalidSpecError: its values make no job together.
    """
    try:
        return changed(spec.base, changes_of(spec.base, candidate.mixture, candidate.fields, candidate.left_out))
    except ValidationError as error:
        fault = field_errors(error.errors(), spec.base.model_dump(mode="json"))[0]
        raise InvalidSpecError(f"candidate {candidate.id} makes no job: {fault.message}", fault.field) from None


def best_of(spec: SweepSpec, results: SweepResults) -> Promotion:
    """The best candidate of a sweep so far, and its job.

    Raises:
        NotFoundError: there is none yet.
    """
    for candidate in results.candidates:
        if candidate.id == results.best:
            return Promotion(candidate=candidate, job=job_of_candidate(spec, candidate))
    raise NotFoundError("the sweep has no best candidate yet")
