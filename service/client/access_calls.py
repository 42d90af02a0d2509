"""The requests about who may use the service."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

from service.client.calls import Call, model, nothing
from service.spec.access import (
    ApiKey,
    AuditEntry,
    CreatedKey,
    CreatedProject,
    Me,
    NewKey,
    NewProject,
    NewUser,
    Project,
    Role,
    Rotation,
    User,
)
from service.spec.base import SpecModel
from service.spec.resources import Page

_read_me = model(Me)
_read_project = model(CreatedProject)
_read_projects = model(Page[Project])
_read_user = model(User)
_read_users = model(Page[User])
_read_key = model(ApiKey)
_read_new_key = model(CreatedKey)
_read_keys = model(Page[ApiKey])
_read_audit = model(Page[AuditEntry])


def _once(body: SpecModel, idempotency_key: str | None) -> dict[str, Any]:
    return {"json": body.model_dump(mode="json"), "headers": {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}}


def _path(collection: str, item_id: str, *parts: str) -> str:
    return "/".join([f"/v1/{collection}", quote(item_id, safe=""), *parts])


def get_me() -> Call[Me]:
    """GET /v1/me."""
    return Call("GET", "/v1/me", _read_me)


def create_project(new: NewProject, idempotency_key: str | None) -> Call[CreatedProject]:
    """POST /v1/projects."""
    return Call("POST", "/v1/projects", _read_project, **_once(new, idempotency_key))


def list_projects(after: str | None, limit: int) -> Call[Page[Project]]:
    """GET /v1/projects."""
    return Call("GET", "/v1/projects", _read_projects, params={"after": after, "limit": limit})


def create_user(new: NewUser, idempotency_key: str | None) -> Call[User]:
    """POST /v1/users."""
    return Call("POST", "/v1/users", _read_user, **_once(new, idempotency_key))


def list_users(after: str | None, limit: int) -> Call[Page[User]]:
    """GET /v1/users."""
    return Call("GET", "/v1/users", _read_users, params={"after": after, "limit": limit})


def change_role(user_id: str, role: Role) -> Call[User]:
    """PATCH /v1/users/{id}."""
    return Call("PATCH", _path("users", user_id), _read_user, json={"role": role})


def remove_user(user_id: str) -> Call[None]:
    """DELETE /v1/users/{id}."""
    return Call("DELETE", _path("users", user_id), nothing)


def create_key(new: NewKey, idempotency_key: str | None) -> Call[CreatedKey]:
    """POST /v1/keys."""
    return Call("POST", "/v1/keys", _read_new_key, **_once(new, idempotency_key))


def list_keys(after: str | None, limit: int) -> Call[Page[ApiKey]]:
    """GET /v1/keys."""
    return Call("GET", "/v1/keys", _read_keys, params={"after": after, "limit": limit})


def rotate_key(key_id: str, rotation: Rotation, idempotency_key: str | None) -> Call[CreatedKey]:
    """POST /v1/keys/{id}/rotate."""
    return Call("POST", _path("keys", key_id, "rotate"), _read_new_key, **_once(rotation, idempotency_key))


def revoke_key(key_id: str) -> Call[ApiKey]:
    """POST /v1/keys/{id}/revoke."""
    return Call("POST", _path("keys", key_id, "revoke"), _read_key)


def list_audit(after: int | None, limit: int) -> Call[Page[AuditEntry]]:
    """GET /v1/audit."""
    return Call("GET", "/v1/audit", _read_audit, params={"after": after, "limit": limit})
