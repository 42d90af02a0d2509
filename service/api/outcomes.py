"""What comes of a run: `…/checkpoints`, `…/evaluations`, `…/artifacts`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Response, status
from fastapi.responses import StreamingResponse

from service.api.access import KeyedRoute, Viewer
from service.api.byte_range import NOTHING, parse_range
from service.api.dependencies import Parts
from service.api.runs import PROBLEMS, Answers, Limit, not_found
from service.evaluations import EVALUATION_TYPES, build_evaluations
from service.run_files import OpenArtifact, find_artifact, list_artifacts, list_checkpoints
from service.spec.outcomes import Artifact, Checkpoint, Evaluation
from service.spec.resources import Job, Page, Run, Sweep

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=KeyedRoute)

_FILE: Answers = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file"},
    206: {"content": {"application/octet-stream": {}}, "description": "The part that `Range` asks for"},
    304: {"description": "It is what `If-None-Match` names"},
    416: {"description": "The file has no such part"},
}
AfterPath = Annotated[str | None, Query(description="Path of the last item of the page before")]
RangeHeader = Annotated[str | None, Header(description="One part, such as `bytes=0-1023`")]
IfRange = Annotated[str | None, Header(description="ETag that the part must be of; otherwise the whole file is sent")]
IfNoneMatch = Annotated[str | None, Header(description="ETag that the caller has")]


@router.get("/jobs/{job_id}/checkpoints", tags=["jobs"], responses=not_found("job"))
def get_checkpoints(job_id: str, who: Viewer, parts: Parts) -> list[Checkpoint]:
    """Whole training checkpoints, the one with the most steps first; a job keeps its newest ones."""
    job = parts.store.of(who).get(Job, job_id)
    saved = {
        event.data.get("path"): event.time
        for event in parts.store.of(who).events_of_types(job_id, ["checkpoint.saved"])
    }
    found = list_checkpoints(job.run_url)
    return [item.model_copy(update={"saved_at": saved.get(item.path)}) for item in found]


@router.get("/jobs/{job_id}/evaluations", tags=["jobs"], responses=not_found("job"))
def get_evaluations(job_id: str, who: Viewer, parts: Parts) -> list[Evaluation]:
    """Held-out losses, benchmarks and samples so far: before training, during it and after."""
    parts.store.of(who).get(Job, job_id)
    return build_evaluations(parts.store.of(who).events_of_types(job_id, EVALUATION_TYPES))


@router.get("/jobs/{job_id}/artifacts", tags=["jobs"], responses=not_found("job"))
def get_artifacts(
    job_id: str, who: Viewer, parts: Parts, after: AfterPath = None, limit: Limit = 1000
) -> Page[Artifact]:
    """Files of the export, the evaluations and the reports, by path."""
    return _list_artifacts(parts.store.of(who).get(Job, job_id), after, limit)


@router.get("/sweeps/{sweep_id}/artifacts", tags=["sweeps"], responses=not_found("sweep"))
def get_sweep_artifacts(
    sweep_id: str, who: Viewer, parts: Parts, after: AfterPath = None, limit: Limit = 1000
) -> Page[Artifact]:
    """Files of the results, the trials and the report, by path."""
    return _list_artifacts(parts.store.of(who).get(Sweep, sweep_id), after, limit)


@router.get(
    "/jobs/{job_id}/artifacts/{path:path}",
    tags=["jobs"],
    response_class=StreamingResponse,
    responses=_FILE | not_found("job or file"),
)
def download_artifact(
    job_id: str,
    path: str,
    who: Viewer,
    parts: Parts,
    *,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A file, or a part of it."""
    return _download(parts.store.of(who).get(Job, job_id), path, (range, if_range, if_none_match))


@router.get(
    "/sweeps/{sweep_id}/artifacts/{path:path}",
    tags=["sweeps"],
    response_class=StreamingResponse,
    responses=_FILE | not_found("sweep or file"),
)
def download_sweep_artifact(
    sweep_id: str,
    path: str,
    who: Viewer,
    parts: Parts,
    *,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A file, or a part of it."""
    return _download(parts.store.of(who).get(Sweep, sweep_id), path, (range, if_range, if_none_match))


def _list_artifacts(run: Run, after: str | None, limit: int) -> Page[Artifact]:
    found = [item for item in list_artifacts(run.run_url) if after is None or item.path > after]
    return Page(data=found[:limit], has_more=len(found) > limit)


def _download(run: Run, path: str, conditions: tuple[str | None, str | None, str | None]) -> Response:
    asked, if_range, if_none_match = conditions
    artifact = find_artifact(run.run_url, path)
    etag = f'"{artifact.version}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    part = parse_range(asked, artifact.num_bytes) if if_range in (None, etag) else None
    if part == NOTHING:
        headers["Content-Range"] = f"bytes */{artifact.num_bytes}"
        return Response(status_code=status.HTTP_416_RANGE_NOT_SATISFIABLE, headers=headers)
    return _send(artifact, part, headers)


def _send(artifact: OpenArtifact, part: tuple[int, int] | None, headers: dict[str, str]) -> Response:
    start, end = part or (0, artifact.num_bytes)
    headers |= {
        "Content-Length": str(end - start),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name)}",
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.num_bytes}"
    return StreamingResponse(
        artifact.read(start, end),
        status_code=status.HTTP_200_OK if part is None else status.HTTP_206_PARTIAL_CONTENT,
        headers=headers,
        media_type="application/octet-stream",
    )
