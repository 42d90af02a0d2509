"""Who is asking, and whether they may: `Viewer` to look, `Member` to change, `Admin` to give others access.

A route names one of them as a parameter, and looks only at `parts.store.of(who)`, which holds what the key's project
holds. A role is the user's in that project; a key's scopes may narrow it, and never widen it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.dependencies import ControlPlane, Parts, control_plane, read_soon
from service.errors import NotAuthenticatedError, NotAuthorizedError
from service.spec.access import Role, Scope
from service.store.principal import Origin, Principal

_ROLES: tuple[Role, ...] = ("viewer", "member", "admin")
_SCOPE_OF: dict[Role, Scope] = {"viewer": "read", "member": "write", "admin": "admin"}

_bearer = HTTPBearer(auto_error=False, description="An API key, such as the one that the first start printed.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def origin_of(request: Request) -> Origin:
    """What is recorded of a request."""
    route = request.scope.get("route")
    return Origin(
        request_id=request.state.request_id,
        address=request.client.host if request.client else "",
        action=getattr(route, "name", request.method.lower()),
        target=request.url.path,
    )


class RequireRole:
    """Lets in whoever has a role, with a key that has its scope.

    Args:
        role: the least one.
    """

    def __init__(self, role: Role) -> None:
        self._role = role

    async def __call__(self, request: Request, parts: Parts, credentials: Credentials) -> Principal:
        """Who is asking.

        Raises:
            NotAuthenticatedError: no key, or one that does not work.
            NotAuthorizedError: the user's role or the key's scopes do not suffice.
            RateLimitedError: the key, or the address without one, asks too often.
        """
        if self._role != "viewer":
            request.state.is_write = True
        if not hasattr(request.state, "principal"):
            request.state.principal = await self._admit(request, parts, credentials)
        principal: Principal = request.state.principal
        require_role(principal, self._role)
        return principal

    @property
    def rank(self) -> int:
        """Higher may more."""
        return _ROLES.index(self._role)

    async def _admit(self, request: Request, parts: ControlPlane, credentials: Credentials) -> Principal:
        try:
            principal = await self._who(request, parts, credentials)
        except NotAuthenticatedError:
            parts.refusals_by_address.take(origin_of(request).address)
            raise
        parts.requests_by_key.take(principal.key_id)
        return principal

    async def _who(self, request: Request, parts: ControlPlane, credentials: Credentials) -> Principal:
        if credentials is None:
            raise NotAuthenticatedError("send your API key as 'Authorization: Bearer …'")
        key = credentials.credentials
        origin, asked_at = origin_of(request), parts.principals.now()
        known = parts.principals.find(key) if self._role == "viewer" else None
        if known is not None:
            return replace(known, origin=origin)
        principal = await read_soon(parts, lambda: parts.store.authenticate(key, origin))
        if not principal.is_use_noted:
            await run_in_threadpool(parts.store.note_use, principal.key_id)
        parts.principals.remember(key, principal, asked_at)
        return principal


class KeyedRoute(APIRoute):
    """A route that asks who comes before it reads what they bring: FastAPI parses the body first, whoever sent it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual handler, behind the door."""
        answer = super().get_route_handler()
        role = max(_roles_of(self.dependant), key=lambda role: role.rank, default=None)
        if role is None:
            return answer

        async def handle(request: Request) -> Response:
            await role(request, control_plane(request), await _bearer(request))
            return await answer(request)

        return handle


def _roles_of(dependant: Dependant) -> Iterator[RequireRole]:
    for each in dependant.dependencies:
        if isinstance(each.call, RequireRole):
            yield each.call
        yield from _roles_of(each)


async def forgets_principals(request: Request, parts: Parts) -> AsyncIterator[None]:
    """For routes that change who may do what: whoever was let in is looked up again once they have answered."""
    try:
        yield
    finally:
        if request.method != "GET":
            parts.principals.forget()


def require_role(principal: Principal, role: Role) -> None:
    """Refuse who has not this role, with its scope.

    Raises:
        NotAuthorizedError: says what is missing.
    """
    if _ROLES.index(principal.role) < _ROLES.index(role):
        raise NotAuthorizedError(
            f"this needs the role {role} in project {principal.project}; yours is {principal.role}"
        )
    if _SCOPE_OF[role] not in principal.scopes:
        has = ", ".join(sorted(principal.scopes))
        raise NotAuthorizedError(f"this needs a key with the scope {_SCOPE_OF[role]}; yours has {has}")


Viewer = Annotated[Principal, Depends(RequireRole("viewer"))]
Member = Annotated[Principal, Depends(RequireRole("member"))]
Admin = Annotated[Principal, Depends(RequireRole("admin"))]
