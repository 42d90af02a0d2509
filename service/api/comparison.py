"""Before and after a job: `jobs:validate`, `…/diff/{other}`, `…/reproduce`; and the presets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from moe.config import PRESETS
from service.api.access import KeyedRoute, Viewer
from service.api.dependencies import Parts
from service.api.reachable import check_files, require_possible
from service.api.runs import CONFLICT, PROBLEMS, not_found
from service.comparison import compare_jobs
from service.reproduction import build_reproduction
from service.run_reader import read_lineage, read_report
from service.spec.job import JobSpec
from service.spec.outcomes import JobDiff, Preset, Reproduction, Validation
from service.spec.resources import Job

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=KeyedRoute)


@router.post("/jobs:validate", tags=["jobs"])
def validate_job(spec: JobSpec, _who: Viewer, parts: Parts) -> Validation:
    """What posting a job would be answered: its spec is checked, and the files that it names; nothing is stored."""
    require_possible(spec, parts.backend, parts.uri_policy)
    return Validation(spec=spec, spec_sha256=spec.sha256(), files=check_files(spec, parts.backend))


@router.get("/jobs/{job_id}/diff/{other_id}", tags=["jobs"], responses=not_found("job"))
def diff_jobs(job_id: str, other_id: str, who: Viewer, parts: Parts) -> JobDiff:
    """How another job differs from this one: spec, data, results."""
    left, right = parts.store.of(who).get(Job, job_id), parts.store.of(who).get(Job, other_id)
    return compare_jobs(left, right, read_report(left.run_url), read_report(right.run_url))


@router.get("/jobs/{job_id}/reproduce", tags=["jobs"], responses=not_found("job") | CONFLICT)
def reproduce_job(job_id: str, who: Viewer, parts: Parts) -> Reproduction:
    """The job that does again what this one did, held to the same data; nothing is started."""
    job = parts.store.of(who).get(Job, job_id)
    prepared = [
        event for event in parts.store.of(who).events_of_types(job_id, ("stage.finished",)) if event.stage == "prepare"
    ]
    summary: Any = prepared[-1].data["summary"] if prepared else None
    lineage = read_lineage(job.run_url, summary["hash"]) if summary else None
    report = read_report(job.run_url) or {}
    return build_reproduction(job, lineage, (report.get("export") or {}).get("environment"))


@router.get("/presets", tags=["models"])
def list_presets(_who: Viewer) -> list[Preset]:
    """Architectures that a job can start from by name."""
    return [
        Preset(
            name=name,
            num_params=config.num_params(),
            num_active_params=config.num_active_params(),
            config={key: value for key, value in asdict(config).items() if key != "kept"},
        )
        for name, config in PRESETS.items()
    ]
