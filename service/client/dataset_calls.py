"""The requests about datasets that both clients make."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

from service.client.calls import Call, model, nothing
from service.spec.dataset import (
    Dataset,
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
from service.spec.resources import Page

_PATH = "/v1/datasets"
_read = model(Dataset)
_read_page = model(Page[Dataset])
_read_part = model(DatasetPart)
_read_parts = model(Page[DatasetPart])
_read_preview = model(Preview)
_read_validation = model(Scan[DatasetValidation])
_read_statistics = model(Scan[Statistics])


def create(spec: DatasetSpec, idempotency_key: str) -> Call[Dataset]:
    """POST /v1/datasets."""
    headers = {"Idempotency-Key": idempotency_key}
    return Call("POST", _PATH, _read, json=spec.model_dump(mode="json"), headers=headers)


def get(dataset_id: str) -> Call[Dataset]:
    """GET /v1/datasets/{id}."""
    return Call("GET", _path(dataset_id), _read)


def list_datasets(statuses: list[DatasetStatus] | None, after: str | None, limit: int) -> Call[Page[Dataset]]:
    """GET /v1/datasets."""
    return Call("GET", _PATH, _read_page, params={"status": statuses, "after": after, "limit": limit})


def list_parts(dataset_id: str) -> Call[Page[DatasetPart]]:
    """GET /v1/datasets/{id}/parts."""
    return Call("GET", _path(dataset_id, "parts"), _read_parts)


def put_part(dataset_id: str, number: int, content: bytes) -> Call[DatasetPart]:
    """PUT /v1/datasets/{id}/parts/{number}; sending it again changes nothing."""
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}
    return Call("PUT", _path(dataset_id, "parts", str(number)), _read_part, content=content, headers=headers)


def complete(dataset_id: str, sha256: str) -> Call[Dataset]:
    """POST /v1/datasets/{id}/complete; repeating it changes nothing."""
    return Call("POST", _path(dataset_id, "complete"), _read, json={"sha256": sha256})


def delete(dataset_id: str) -> Call[None]:
    """DELETE /v1/datasets/{id}."""
    return Call("DELETE", _path(dataset_id), nothing)


def validate(dataset_id: str, reading: DatasetReading) -> Call[Scan[DatasetValidation]]:
    """POST /v1/datasets/{id}/validate; repeating it asks how the pass stands."""
    return Call("POST", _path(dataset_id, "validate"), _read_validation, json=reading.model_dump(mode="json"))


def statistics(dataset_id: str, reading: DatasetReading) -> Call[Scan[Statistics]]:
    """POST /v1/datasets/{id}/statistics; repeating it asks how the pass stands."""
    return Call("POST", _path(dataset_id, "statistics"), _read_statistics, json=reading.model_dump(mode="json"))


def preview(dataset_id: str, request: PreviewRequest) -> Call[Preview]:
    """POST /v1/datasets/{id}/preview, which changes nothing."""
    return Call("POST", _path(dataset_id, "preview"), _read_preview, json=request.model_dump(mode="json"))


def _path(*parts: str) -> str:
    return "/".join([_PATH, *(quote(part, safe="") for part in parts)])
