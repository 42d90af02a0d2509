"""`/v1/me`, `/v1/projects`, `/v1/users`, `/v1/keys`, `/v1/audit`: who may do what, and who did."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, status

from service.api.access import Admin, KeyedRoute, Viewer, forgets_principals
from service.api.dependencies import Parts
from service.api.runs import CONFLICT, PROBLEMS, AfterId, IdempotencyKey, Limit, created, made_before, not_found
from service.errors import NotAuthorizedError, NotFoundError
from service.spec.access import (
    DEFAULT_PROJECT,
    ApiKey,
    AuditEntry,
    CreatedKey,
    CreatedProject,
    Me,
    NewKey,
    NewProject,
    NewUser,
    Project,
    ProjectChange,
    Rotation,
    User,
    UserChange,
)
from service.spec.resources import Page

_FORGETS = Depends(forgets_principals, scope="function")  # before the answer goes out
router = APIRouter(prefix="/v1", tags=["access"], responses=PROBLEMS, dependencies=[_FORGETS], route_class=KeyedRoute)

_CREATED = status.HTTP_201_CREATED


@router.get("/me")
def get_me(who: Viewer) -> Me:
    """Who the key is, and what it may do."""
    scopes = tuple(sorted(who.scopes))
    return Me(key_id=who.key_id, user=who.user, project=who.project, role=who.role, scopes=scopes)


@router.post("/projects", status_code=_CREATED, responses=CONFLICT | made_before(CreatedProject))
def create_project(
    new: NewProject, who: Admin, parts: Parts, response: Response, idempotency_key: IdempotencyKey = None
) -> CreatedProject:
    """Create a project, and a key of its first admin, who is the caller. Only the default project's admins may."""
    if who.project != DEFAULT_PROJECT:
        raise NotAuthorizedError(f"only admins of project {DEFAULT_PROJECT} create projects")
    project, is_new = parts.store.of(who).create_project(new, idempotency_key)
    return created(project, f"/v1/projects/{project.id}", response, is_new=is_new)


@router.get("/projects")
def list_projects(who: Viewer, parts: Parts, after: AfterId = None, limit: Limit = 50) -> Page[Project]:
    """List projects by id: the key's own; for the default project's admins all."""
    projects, has_more = parts.store.of(who).list_projects(after=after, limit=limit)
    return Page(data=projects, has_more=has_more)


@router.get("/projects/{project_id}", responses=not_found("project"))
def get_project(project_id: str, who: Viewer, parts: Parts) -> Project:
    """One project: the key's own; for the default project's admins any."""
    if project_id != who.project and (who.project, who.role) != (DEFAULT_PROJECT, "admin"):
        raise NotFoundError(f"there is no project {project_id!r}")
    return parts.store.of(who).get_project(project_id)


@router.patch("/projects/{project_id}", responses=not_found("project"))
def change_project(project_id: str, change: ProjectChange, who: Admin, parts: Parts) -> Project:
    """Give a project other quotas, in the place of all those before. Only the default project's admins may."""
    if who.project != DEFAULT_PROJECT:
        raise NotAuthorizedError(f"only admins of project {DEFAULT_PROJECT} change quotas")
    project = parts.store.of(who).change_project(project_id, change)
    parts.reconciler.wake()
    return project


@router.post("/users", status_code=_CREATED, responses=CONFLICT | made_before(User))
def create_user(
    new: NewUser, who: Admin, parts: Parts, response: Response, idempotency_key: IdempotencyKey = None
) -> User:
    """Take a user into the key's project. Their keys are made by `POST /v1/keys`."""
    user, is_new = parts.store.of(who).create_user(new, idempotency_key)
    return created(user, f"/v1/users/{user.id}", response, is_new=is_new)


@router.get("/users")
def list_users(who: Admin, parts: Parts, after: AfterId = None, limit: Limit = 50) -> Page[User]:
    """List the project's members by id."""
    users, has_more = parts.store.of(who).list_users(after=after, limit=limit)
    return Page(data=users, has_more=has_more)


@router.get("/users/{user_id}", responses=not_found("user"))
def get_user(user_id: str, who: Admin, parts: Parts) -> User:
    """One member of the project."""
    return parts.store.of(who).get_user(user_id)


@router.patch("/users/{user_id}", responses=not_found("user") | CONFLICT)
def change_user(user_id: str, change: UserChange, who: Admin, parts: Parts) -> User:
    """Give a member another role. The last admin stays one."""
    return parts.store.of(who).change_role(user_id, change.role)


@router.delete("/users/{user_id}", status_code=status.HTTP_204_NO_CONTENT, responses=not_found("user") | CONFLICT)
def remove_user(user_id: str, who: Admin, parts: Parts) -> None:
    """Remove a user from the project, and revoke their keys to it. The last admin stays."""
    parts.store.of(who).remove_user(user_id)


@router.post("/keys", status_code=_CREATED, responses=not_found("user") | CONFLICT | made_before(CreatedKey))
def create_key(
    new: NewKey, who: Admin, parts: Parts, response: Response, idempotency_key: IdempotencyKey = None
) -> CreatedKey:
    """Make an API key for a member of the project. `secret` is shown this once."""
    key, is_new = parts.store.of(who).create_key(new, idempotency_key)
    return created(key, f"/v1/keys/{key.id}", response, is_new=is_new)


@router.get("/keys", responses=not_found("key"))
def list_keys(who: Admin, parts: Parts, after: AfterId = None, limit: Limit = 50) -> Page[ApiKey]:
    """List the project's keys, newest first, also those that no longer work."""
    keys, has_more = parts.store.of(who).list_keys(after=after, limit=limit)
    return Page(data=keys, has_more=has_more)


@router.get("/keys/{key_id}", responses=not_found("key"))
def get_key(key_id: str, who: Admin, parts: Parts) -> ApiKey:
    """One key."""
    return parts.store.of(who).get_key(key_id)


@router.post(
    "/keys/{key_id}/rotate", status_code=_CREATED, responses=not_found("key") | CONFLICT | made_before(CreatedKey)
)
def rotate_key(
    key_id: str,
    who: Admin,
    parts: Parts,
    response: Response,
    *,
    rotation: Rotation | None = None,
    idempotency_key: IdempotencyKey = None,
) -> CreatedKey:
    """Make a key in the place of another, which goes on working for `overlap_s`. `secret` is shown this once."""
    key, is_new = parts.store.of(who).rotate_key(key_id, rotation or Rotation(), idempotency_key)
    return created(key, f"/v1/keys/{key.id}", response, is_new=is_new)


@router.post("/keys/{key_id}/revoke", responses=not_found("key"))
def revoke_key(key_id: str, who: Admin, parts: Parts) -> ApiKey:
    """Refuse a key from now on. Revoking twice is no error."""
    return parts.store.of(who).revoke_key(key_id)


@router.get("/audit")
def list_audit(
    who: Admin,
    parts: Parts,
    after: Annotated[int | None, Query(ge=1, lt=2**31, description="Id of the last entry already seen")] = None,
    limit: Limit = 50,
) -> Page[AuditEntry]:
    """List writes and refused accesses, newest first."""
    entries, has_more = parts.store.of(who).list_audit(after=after, limit=limit)
    return Page(data=entries, has_more=has_more)
