"""The requests that both clients make, and how answers are read: written once, sent synchronously or not."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from service.errors import RateLimitedError, ServiceUnreachableError, SleddogError, every_error
from service.retry_after import parse_retry_after
from service.spec.access import Project, ProjectChange
from service.spec.job import JobSpec
from service.spec.outcomes import Artifact, Checkpoint, Evaluation, JobDiff, Preset, Reproduction, Validation
from service.spec.plan import Plan, PlanRequest
from service.spec.queue import Queue
from service.spec.resources import (
    Health,
    Job,
    JobEvent,
    MetricSeries,
    Page,
    Problem,
    Run,
    RunUpdate,
    StepMetrics,
    Sweep,
)
from service.spec.run_filter import RunFilter
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, SweepResults, Trial, TrialStatus

AnyRun = TypeVar("AnyRun", bound=Run)
Answer = TypeVar("Answer")
Included = Literal["events", "snapshots"]

MAX_RETRIES = 4
_RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 5.0
_MAX_KEPT = 64
LONGEST_WISH_S = 60.0
"""A service that wants a longer pause is not waited for: its answer is the caller's to see."""

_ERRORS = {error.code: error for error in every_error()}


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request.

    Attributes:
        method, path, params, json, content, headers: as httpx takes them.
        read: makes the answer of a successful response.
        is_kept: the answer is worth keeping, for it is asked for again and again and mostly the same.

    Every call may be repeated: reads change nothing, a cancel or a resume asks for the same again, a create carries a
    key; what was deleted is not found the second time.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_kept: bool = False

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request for a transport."""
        params = {name: value for name, value in self.params.items() if value is not None}
        body: dict[str, Any] = {"json": self.json} if self.content is None else {"content": self.content}
        return http.build_request(self.method, self.path, params=params, headers=dict(self.headers), **body)


class KeptAnswers:
    """The last answers to some calls, which the service need not send again while they are the same."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[str, Any]] = {}

    def request(self, call: Call[Answer], http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request, which names the answer that is kept."""
        request = call.request(http)
        if call.is_kept and call.path in self._answers:
            request.headers["If-None-Match"] = self._answers[call.path][0]
        return request

    def read(self, call: Call[Answer], response: httpx.Response) -> Answer:
        """The answer of a response, or the one that is kept.

        Raises:
            SleddogError: as `read_answer`.
        """
        kept = self._answers.get(call.path)
        if response.status_code == httpx.codes.NOT_MODIFIED and kept is not None:
            answer: Answer = kept[1]
            return answer
        answer = read_answer(call, response)
        if call.is_kept and (etag := response.headers.get("etag")):
            self._answers.pop(call.path, None)
            self._answers[call.path] = (etag, answer)
            if len(self._answers) > _MAX_KEPT:
                del self._answers[next(iter(self._answers))]
        return answer


def retry_delay_s(retry: int) -> float:
    """Seconds before a repetition: doubling, with jitter so that many clients do not come back at once."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311  no secret
    return jitter * min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0**retry)


def is_retried(response: httpx.Response) -> bool:
    """Whether repeating the request may help."""
    return response.status_code in _RETRIED_STATUSES


def retry_after_s(response: httpx.Response) -> float:
    """Seconds that the service wants the client to wait, by `Retry-After`; 0 where it does not say."""
    return parse_retry_after(response.headers.get("retry-after", ""))


def unreachable(url: httpx.URL, error: httpx.HTTPError) -> ServiceUnreachableError:
    """The error for a service that does not answer."""
    return ServiceUnreachableError(f"{url} does not answer ({error}); is `sleddog serve` running there?")


def raise_unless_away(response: httpx.Response) -> None:
    """Raise what a refused stream stands for: the error itself, or that the service is away for a moment.

    Raises:
        httpx.RemoteProtocolError: asking again may help.
        SleddogError: it will not.
    """
    if is_retried(response):
        raise httpx.RemoteProtocolError(f"HTTP {response.status_code}", request=response.request)
    raise_for_problem(response)


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the error that a problem document stands for."""
    if response.is_success:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        raise ServiceUnreachableError(f"HTTP {response.status_code}: {response.text[:200]}") from None
    kind = _ERRORS.get(problem.code, SleddogError)
    if kind is RateLimitedError:
        raise RateLimitedError(parse_retry_after(response.headers.get("Retry-After", "")))
    if len(problem.errors) == 1:
        raise kind(problem.errors[0].message, problem.errors[0].field or None)
    raise kind(problem.detail)


def read_answer(call: Call[Answer], response: httpx.Response) -> Answer:
    """The answer of a response.

    Raises:
        SleddogError: the kind that the service answered; ServiceUnreachableError when it was no such service.
    """
    raise_for_problem(response)
    try:
        return call.read(response)
    except ValidationError:
        raise ServiceUnreachableError(f"what answers at {response.url} is no Sleddog service") from None


def _text(response: httpx.Response) -> str:
    return response.text


def nothing(_response: httpx.Response) -> None:
    """There is no answer, or none as a whole: it is read as it comes."""


def model(kind: Any) -> Callable[[httpx.Response], Any]:
    """Reads an answer of a type."""
    adapter = TypeAdapter(kind)
    return lambda response: adapter.validate_json(response.content)


@dataclass(frozen=True)
class RunCalls(Generic[AnyRun]):
    """The requests that jobs and sweeps have in common.

    Attributes:
        path: of the collection.
        read, read_page: make the answer of one, and of a list.
    """

    path: str
    read: Callable[[httpx.Response], AnyRun]
    read_page: Callable[[httpx.Response], Page[AnyRun]]

    def create(self, spec: JobSpec | SweepSpec, idempotency_key: str | None, priority: int = 0) -> Call[AnyRun]:
        """POST, with a key so that a repetition cannot make a second one."""
        params = {"priority": priority or None}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return Call("POST", self.path, self.read, json=spec.model_dump(mode="json"), headers=headers, params=params)

    def get(self, run_id: str) -> Call[AnyRun]:
        """GET …/{id}."""
        return Call("GET", self.path_of(run_id), self.read, is_kept=True)

    def list(self, only: RunFilter, after: str | None, limit: int) -> Call[Page[AnyRun]]:
        """GET."""
        params = {
            "status": only.statuses or None,
            "name": only.name,
            "created_after": only.created_after and only.created_after.isoformat(),
            "created_before": only.created_before and only.created_before.isoformat(),
        }
        return Call("GET", self.path, self.read_page, params={**params, "after": after, "limit": limit})

    def cancel(self, run_id: str) -> Call[AnyRun]:
        """POST …/{id}/cancel."""
        return Call("POST", self.path_of(run_id, "cancel"), self.read)

    def update(self, run_id: str, update: RunUpdate) -> Call[AnyRun]:
        """PATCH …/{id}."""
        return Call("PATCH", self.path_of(run_id), self.read, json=update.model_dump(mode="json"))

    def approve(self, run_id: str) -> Call[AnyRun]:
        """POST …/{id}/approve."""
        return Call("POST", self.path_of(run_id, "approve"), self.read)

    def resume(self, run_id: str) -> Call[AnyRun]:
        """POST …/{id}/resume."""
        return Call("POST", self.path_of(run_id, "resume"), self.read)

    def delete(self, run_id: str, *, purge: bool) -> Call[None]:
        """DELETE …/{id}."""
        return Call("DELETE", self.path_of(run_id), nothing, params={"purge": purge})

    def list_events(self, run_id: str, after: int, limit: int) -> Call[Page[JobEvent]]:
        """GET …/{id}/events."""
        return Call("GET", self.path_of(run_id, "events"), _read_events, params={"after": after, "limit": limit})

    def stream_events(self, run_id: str, after: int, included: Included) -> Call[None]:
        """GET …/{id}/events:stream, whose answer is read message by message."""
        params = {"include": included, "after": after}
        return Call("GET", f"{self.path_of(run_id, 'events')}:stream", nothing, params=params)

    def get_logs(self, run_id: str, tail: int | None) -> Call[str]:
        """GET …/{id}/logs."""
        return Call("GET", self.path_of(run_id, "logs"), _text, params={"tail": tail})

    def stream_logs(self, run_id: str, tail: int | None) -> Call[None]:
        """GET …/{id}/logs?follow=true, whose answer is read part by part."""
        params = {"tail": tail, "follow": True}
        return Call("GET", self.path_of(run_id, "logs"), nothing, params=params)

    def list_artifacts(self, run_id: str, after: str | None, limit: int) -> Call[Page[Artifact]]:
        """GET …/{id}/artifacts."""
        params = {"after": after, "limit": limit}
        return Call("GET", self.path_of(run_id, "artifacts"), _read_artifacts, params=params)

    def download(self, run_id: str, path: str, start: int, etag: str | None) -> Call[None]:
        """GET …/{id}/artifacts/{path}, from a byte on, if the file is still the one that the ETag names."""
        headers = {"Range": f"bytes={start}-", "If-Range": etag} if start and etag else {}
        parts = path.split("/")
        return Call("GET", self.path_of(run_id, "artifacts", *parts), nothing, headers=headers)

    def read_snapshot(self, run: AnyRun, content: str) -> AnyRun:
        """How a run stands, by a snapshot, which leaves out the spec."""
        return type(run).model_validate({"spec": run.spec, **json.loads(content)})

    def path_of(self, run_id: str, *parts: str) -> str:
        """Path of a job or a sweep, or of something below it."""
        return "/".join([self.path, *(quote(part, safe="") for part in (run_id, *parts))])


JOBS = RunCalls("/v1/jobs", model(Job), model(Page[Job]))
SWEEPS = RunCalls("/v1/sweeps", model(Sweep), model(Page[Sweep]))

_read_events = model(Page[JobEvent])
_read_metrics = model(Page[StepMetrics])
_read_series = model(list[MetricSeries])
_read_artifacts = model(Page[Artifact])
_read_checkpoints = model(list[Checkpoint])
_read_evaluations = model(list[Evaluation])
_read_diff = model(JobDiff)
_read_reproduction = model(Reproduction)
_read_validation = model(Validation)
_read_presets = model(list[Preset])
_read_health = model(Health)
_read_plan = model(Plan)
_read_report = model(dict[str, Any])
_read_results = model(SweepResults)
_read_trials = model(Page[Trial])
_read_beams = model(Page[Candidate])
_read_job_spec = model(JobSpec)


def plan_job(request: PlanRequest) -> Call[Plan]:
    """POST /v1/jobs:plan, which changes nothing."""
    return Call("POST", "/v1/jobs:plan", _read_plan, json=request.model_dump(mode="json"))


def list_metrics(job_id: str, after: int, limit: int, steps: tuple[int | None, int | None]) -> Call[Page[StepMetrics]]:
    """GET /v1/jobs/{id}/metrics, of the steps from the one to the other."""
    params = {"from_step": steps[0], "to_step": steps[1], "after": after, "limit": limit}
    return Call("GET", JOBS.path_of(job_id, "metrics"), _read_metrics, params=params)


def list_series(
    job_id: str, names: list[str] | None, max_points: int, steps: tuple[int | None, int | None]
) -> Call[list[MetricSeries]]:
    """GET /v1/jobs/{id}/metrics/series."""
    params = {"name": names, "from_step": steps[0], "to_step": steps[1], "max_points": max_points}
    return Call("GET", JOBS.path_of(job_id, "metrics", "series"), _read_series, params=params)


def get_report(job_id: str) -> Call[dict[str, Any]]:
    """GET /v1/jobs/{id}/report."""
    return Call("GET", JOBS.path_of(job_id, "report"), _read_report)


def retry_job(job_id: str, idempotency_key: str | None) -> Call[Job]:
    """POST /v1/jobs/{id}/retry, with a key so that a repetition cannot make a second one."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", JOBS.path_of(job_id, "retry"), JOBS.read, headers=headers)


def list_checkpoints(job_id: str) -> Call[list[Checkpoint]]:
    """GET /v1/jobs/{id}/checkpoints."""
    return Call("GET", JOBS.path_of(job_id, "checkpoints"), _read_checkpoints)


def list_evaluations(job_id: str) -> Call[list[Evaluation]]:
    """GET /v1/jobs/{id}/evaluations."""
    return Call("GET", JOBS.path_of(job_id, "evaluations"), _read_evaluations)


def validate_job(spec: JobSpec) -> Call[Validation]:
    """POST /v1/jobs:validate, which changes nothing."""
    return Call("POST", "/v1/jobs:validate", _read_validation, json=spec.model_dump(mode="json"))


def diff_jobs(job_id: str, other_id: str) -> Call[JobDiff]:
    """GET /v1/jobs/{id}/diff/{other}."""
    return Call("GET", JOBS.path_of(job_id, "diff", other_id), _read_diff)


def reproduce_job(job_id: str) -> Call[Reproduction]:
    """GET /v1/jobs/{id}/reproduce."""
    return Call("GET", JOBS.path_of(job_id, "reproduce"), _read_reproduction)


def list_presets() -> Call[list[Preset]]:
    """GET /v1/presets."""
    return Call("GET", "/v1/presets", _read_presets)


def get_results(sweep_id: str) -> Call[SweepResults]:
    """GET /v1/sweeps/{id}/results."""
    return Call("GET", SWEEPS.path_of(sweep_id, "results"), _read_results)


def list_trials(
    sweep_id: str,
    after: str | None,
    limit: int,
    *,
    stage: str | None,
    candidate: str | None,
    statuses: list[TrialStatus] | None,
) -> Call[Page[Trial]]:
    """GET /v1/sweeps/{id}/trials."""
    params = {"stage": stage, "candidate": candidate, "status": statuses, "after": after, "limit": limit}
    return Call("GET", SWEEPS.path_of(sweep_id, "trials"), _read_trials, params=params)


def list_beams(
    sweep_id: str, after: str | None, limit: int, *, stage: str | None, all_candidates: bool
) -> Call[Page[Candidate]]:
    """GET /v1/sweeps/{id}/beams."""
    params = {"stage": stage, "all": all_candidates, "after": after, "limit": limit}
    return Call("GET", SWEEPS.path_of(sweep_id, "beams"), _read_beams, params=params)


def promote(sweep_id: str, candidate_id: str) -> Call[JobSpec]:
    """POST /v1/sweeps/{id}/beams/{candidate}/promote, which changes nothing."""
    return Call("POST", SWEEPS.path_of(sweep_id, "beams", candidate_id, "promote"), _read_job_spec)


def get_sweep_report(sweep_id: str) -> Call[str]:
    """GET /v1/sweeps/{id}/report."""
    return Call("GET", SWEEPS.path_of(sweep_id, "report"), _text)


def get_health() -> Call[Health]:
    """GET /healthz."""
    return Call("GET", "/healthz", _read_health)


def get_queue() -> Call[Queue]:
    """GET /v1/queue."""
    return Call("GET", "/v1/queue", model(Queue))


def get_project(project_id: str) -> Call[Project]:
    """GET /v1/projects/{id}."""
    return Call("GET", f"/v1/projects/{quote(project_id, safe='')}", model(Project))


def change_project(project_id: str, change: ProjectChange) -> Call[Project]:
    """PATCH /v1/projects/{id}."""
    document = change.model_dump(mode="json")
    return Call("PATCH", f"/v1/projects/{quote(project_id, safe='')}", model(Project), json=document)
