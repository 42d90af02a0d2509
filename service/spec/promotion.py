"""From a sweep's candidate to the job that trains it at full length."""

from __future__ import annotations

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


def job_of_candidate(spec: SweepSpec, candidate: Candidate) -> JobSpec:
    """The base job, on its own model and for its own number of steps, with a candidate's mix and other values.

    How often a category may be repeated, and its cap, stay as in the base job's mix. A candidate without a mix of its
    own has the base job's.

    Raises:
        InvalidSpecError: its values make no job together.
    """
    base = spec.base.data
    changes: dict[str, JsonValue] = dict(candidate.fields)
    if candidate.left_out is not None:
        changes["data.leave_out"] = [*base.leave_out, candidate.left_out]
    if candidate.mixture is not None:
        limits = {category: share.model_dump() for category, share in (base.mixture or {}).items()}
        changes["data.mixture"] = {
            category: limits.get(category, {}) | {"share": share} for category, share in candidate.mixture.items()
        }
    try:
        return changed(spec.base, changes)
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
