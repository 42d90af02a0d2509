"""`/v1/datasets`: upload in parts, list, look at, delete; validate, preview, count."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from typing import IO, Annotated, Any, TypeVar

from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.api.access import KeyedRoute, Member, Viewer
from service.api.dependencies import Parts
from service.api.runs import CONFLICT, PROBLEMS, AfterId, IdempotencyKey, Limit, created, made_before, not_found
from service.errors import InvalidDatasetError
from service.spec.dataset import (
    Dataset,
    DatasetCompletion,
    DatasetPart,
    DatasetReading,
    DatasetSpec,
    DatasetStatus,
    DatasetValidation,
    Preview,
    PreviewRequest,
    Scan,
    Statistics,
)
from service.spec.resources import Page, Problem
from service.store.models import DatasetScanRow

_NOT_FOUND = not_found("dataset")
_MEMORY_BYTES = 2**20
"""Of an arriving part that is kept in memory; the rest goes to a temporary file."""
_DIGEST = re.compile(r"(?:^|[,\s])sha-256=:([A-Za-z0-9+/]{43}=):")

Result = TypeVar("Result", DatasetValidation, Statistics)
ContentDigest = Annotated[
    str, Header(description="SHA-256 of the part as of RFC 9530: `sha-256=:<base64>:`", examples=["sha-256=:…=:"])
]

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=PROBLEMS, route_class=KeyedRoute)


@router.post("", status_code=status.HTTP_201_CREATED, responses=CONFLICT | made_before(Dataset), response_model=Dataset)
def create_dataset(
    spec: DatasetSpec, who: Member, parts: Parts, response: Response, idempotency_key: IdempotencyKey = None
) -> Any:
    """Begin an upload: the answer says how many parts of what size to send."""
    layout = parts.datasets.layout(spec)
    dataset, is_new = parts.store.of(who).create_dataset(spec, layout, idempotency_key=idempotency_key)
    return created(dataset, f"/v1/datasets/{dataset.id}", response, is_new=is_new)


@router.get("", responses=_NOT_FOUND, response_model=Page[Dataset])
def list_datasets(
    who: Viewer,
    parts: Parts,
    status: Annotated[list[DatasetStatus] | None, Query(description="Only these")] = None,
    after: AfterId = None,
    limit: Limit = 50,
) -> Any:
    """List datasets, newest first."""
    datasets, has_more = parts.store.of(who).list_datasets(statuses=status or (), after=after, limit=limit)
    return Page(data=datasets, has_more=has_more)


@router.get("/{dataset_id}", responses=_NOT_FOUND, response_model=Dataset)
def get_dataset(dataset_id: str, who: Viewer, parts: Parts) -> Any:
    """How a dataset stands."""
    return parts.store.of(who).get_dataset(dataset_id)


@router.delete("/{dataset_id}", status_code=status.HTTP_204_NO_CONTENT, responses=_NOT_FOUND | CONFLICT)
def delete_dataset(dataset_id: str, who: Member, parts: Parts) -> None:
    """Take a dataset away; refused while a job that reads it has not ended."""
    parts.store.of(who).delete_dataset(dataset_id)
    parts.datasets.worker.wake()


@router.get("/{dataset_id}/parts", responses=_NOT_FOUND)
def list_parts(dataset_id: str, who: Viewer, parts: Parts) -> Page[DatasetPart]:
    """The parts that have arrived: an upload that was broken off sends the others."""
    return Page(data=parts.store.of(who).list_parts(dataset_id), has_more=False)


@router.put(
    "/{dataset_id}/parts/{number}",
    responses=_NOT_FOUND | CONFLICT | {400: {"model": Problem, "description": "The upload broke off"}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_part(
    request: Request,
    who: Member,
    parts: Parts,
    *,
    dataset_id: str,
    number: Annotated[int, Path(ge=1, le=100_000)],
    content_digest: ContentDigest,
) -> DatasetPart:
    """Send a part, in any order and several at once; sending it again changes nothing."""
    sha256 = _sha256_of(content_digest)
    datasets = parts.datasets
    with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as content:
        await _receive(request, content, datasets.limits.max_part_bytes)

        def store() -> DatasetPart:
            store = parts.store.of(who)
            return datasets.put_part(store, store.get_dataset(dataset_id), number, content, sha256)

        return await run_in_threadpool(store)


async def _receive(request: Request, content: IO[bytes], max_bytes: int) -> None:
    """Take a body in, and no more of it than may be."""
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                raise InvalidDatasetError(f"a part has at most {max_bytes:,} bytes")
            content.write(piece)
    except ClientDisconnect:
        # nobody is there to be answered, and nothing has failed here
        raise HTTPException(status.HTTP_400_BAD_REQUEST, f"the upload broke off after {size:,} bytes") from None
    content.seek(0)


@router.post("/{dataset_id}/complete", status_code=202, responses=_NOT_FOUND | CONFLICT, response_model=Dataset)
def complete_dataset(dataset_id: str, completion: DatasetCompletion, who: Member, parts: Parts) -> Any:
    """Say that all parts are there. They are put together and verified; the status tells when it is `ready`."""
    dataset = parts.store.of(who).complete_dataset(dataset_id, completion.sha256)
    parts.datasets.worker.wake()
    return dataset


@router.post("/{dataset_id}/validate", responses=_NOT_FOUND | CONFLICT)
def validate_dataset(dataset_id: str, reading: DatasetReading, who: Viewer, parts: Parts) -> Scan[DatasetValidation]:
    """Look at every row as a job would. The pass is made once; asking again tells how it stands, then what it found."""
    scan = parts.store.of(who).ask_scan(dataset_id, reading)
    parts.datasets.worker.wake()
    return Scan[DatasetValidation].model_validate(_scan(scan, "validation"))


@router.post("/{dataset_id}/statistics", responses=_NOT_FOUND | CONFLICT)
def get_statistics(dataset_id: str, reading: DatasetReading, who: Viewer, parts: Parts) -> Scan[Statistics]:
    """What the conversations are like, from the same pass as the validation."""
    scan = parts.store.of(who).ask_scan(dataset_id, reading)
    parts.datasets.worker.wake()
    return Scan[Statistics].model_validate(_scan(scan, "statistics"))


@router.post("/{dataset_id}/preview", responses=_NOT_FOUND | CONFLICT)
def preview_dataset(dataset_id: str, request: PreviewRequest, who: Viewer, parts: Parts) -> Preview:
    """Some rows as they would be trained on, with what is trained of them marked, or why they would be rejected."""
    return parts.datasets.preview(parts.store.of(who).get_dataset(dataset_id), request)


def _scan(row: DatasetScanRow, part: str) -> dict[str, Any]:
    result = row.result and row.result[part]
    return {"dataset_id": row.dataset_id, "status": row.status, "error": row.error, "result": result}


def _sha256_of(content_digest: str) -> str:
    match = _DIGEST.search(content_digest)
    if match is None:
        raise InvalidDatasetError("is not of the form sha-256=:<base64>:", "Content-Digest")
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        raise InvalidDatasetError("holds no base64", "Content-Digest") from None
