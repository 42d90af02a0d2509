"""`/v1/files`, in OpenAI's form: each file is a dataset, and each dataset a file."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

import fsspec
from fastapi import APIRouter, Header, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from service.api.access import KeyedRoute, Member, Viewer
from service.api.dependencies import Parts
from service.api.openai_errors import OPENAI_PROBLEMS, OpenAIError, openai_not_found
from service.api.runs import IdempotencyKey
from service.datasets.storage import pieces
from service.errors import InvalidDatasetError
from service.openai_api.answers import openai_file
from service.openai_api.files import receive
from service.openai_api.forms import Deleted, OpenAIFile, OpenAIList
from service.store.datasets import not_ready

_NOT_FOUND = openai_not_found("file")
MAX_UPLOAD_BYTES = 512 * 2**20
"""As OpenAI's; larger files go to `/v1/datasets`, in parts."""
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
            }
        }
    },
}

_TOO_LARGE: dict[int | str, dict[str, Any]] = {
    411: {"model": OpenAIError, "description": "No Content-Length"},
    413: {"model": OpenAIError, "description": "Larger than 512 MiB"},
}

RetryCount = Annotated[int, Header(alias="x-stainless-retry-count", ge=0, description="As OpenAI's client sends it")]

router = APIRouter(prefix="/v1/files", tags=["openai"], responses=OPENAI_PROBLEMS, route_class=KeyedRoute)


@router.post("", openapi_extra={"requestBody": _FORM}, responses=_TOO_LARGE)
async def create_file(
    request: Request,
    who: Member,
    parts: Parts,
    retry_count: RetryCount = 0,
    idempotency_key: IdempotencyKey = None,
) -> OpenAIFile:
    """Upload a file of up to 512 MiB. Its rows are judged by the job that reads it, or by a dataset's `validate`."""
    _require_size(request.headers.get("content-length"))
    async with request.form(max_files=1, max_fields=8) as form:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile) or not file.filename:
            raise InvalidDatasetError("is missing: send a file with its name", "file")
        if not isinstance(purpose, str) or not purpose or len(purpose) > 32:
            raise InvalidDatasetError("is missing: send `fine-tune`", "purpose")
        name, content = file.filename, file.file

        def store() -> OpenAIFile:
            mine = parts.store.of(who)
            dataset = receive(
                parts.datasets,
                mine,
                content,
                name,
                purpose,
                is_repeated=retry_count > 0,
                idempotency_key=idempotency_key,
            )
            return openai_file(dataset)

        return await run_in_threadpool(store)


def _require_size(content_length: str | None) -> None:
    """Refuse a body before it is read, which goes to the disk."""
    if content_length is None or not content_length.isdecimal():
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "send Content-Length")
    if int(content_length) > MAX_UPLOAD_BYTES:
        detail = f"the file is larger than {MAX_UPLOAD_BYTES:,} bytes: upload it in parts, by /v1/datasets"
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


@router.get("", responses=_NOT_FOUND)
def list_files(
    who: Viewer,
    parts: Parts,
    *,
    after: Annotated[str | None, Query(description="Id of the last item of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Items at most")] = 10_000,
    order: Annotated[Literal["asc", "desc"], Query(description="By time")] = "desc",
    purpose: Annotated[str | None, Query(description="Only files of it")] = None,
) -> OpenAIList[OpenAIFile]:
    """List files; datasets that came by other ways have the purpose `fine-tune`."""
    datasets, has_more = parts.store.of(who).list_datasets(
        purpose=purpose, after=after, limit=limit, oldest_first=order == "asc"
    )
    return OpenAIList(data=[openai_file(dataset) for dataset in datasets], has_more=has_more)


@router.get("/{file_id}", responses=_NOT_FOUND)
def get_file(file_id: str, who: Viewer, parts: Parts) -> OpenAIFile:
    """How a file stands."""
    return openai_file(parts.store.of(who).get_dataset(file_id))


@router.delete("/{file_id}", responses=_NOT_FOUND)
def delete_file(file_id: str, who: Member, parts: Parts) -> Deleted:
    """Take a file away; refused while a job that reads it has not ended."""
    parts.store.of(who).delete_dataset(file_id)
    parts.datasets.worker.wake()
    return Deleted(id=file_id, object="file")


@router.get("/{file_id}/content", responses=_NOT_FOUND, response_class=StreamingResponse)
def get_file_content(file_id: str, who: Viewer, parts: Parts) -> Any:
    """The file as it was uploaded."""
    dataset = parts.store.of(who).get_dataset(file_id)
    if dataset.status != "ready":
        raise not_ready(dataset.id, dataset.status)
    file = fsspec.open(parts.datasets.files.content_url(dataset.id, dataset.file_name), "rb").open()
    headers = {"Content-Length": str(dataset.num_bytes), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(pieces(file), media_type="application/octet-stream", headers=headers)
