"""What the routes need: the parts of the running control plane, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.backends.base import Backend
from service.errors import NotAuthenticatedError
from service.reconcile import Reconciler
from service.store.store import Store


@dataclass(frozen=True)
class ControlPlane:
    """The parts of a running control plane.

    Attributes:
        store: the truth.
        backend: the cluster.
        reconciler: brings the two to agree.
        runs_url: root of the run directories.
    """

    store: Store
    backend: Backend
    reconciler: Reconciler
    runs_url: str


def control_plane(request: Request) -> ControlPlane:
    """The parts behind this app."""
    parts: ControlPlane = request.app.state.control_plane
    return parts


Parts = Annotated[ControlPlane, Depends(control_plane)]
_bearer = HTTPBearer(auto_error=False, description="The API key that the first start printed.")


def require_key(parts: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    """Refuse requests without a valid key."""
    if credentials is None:
        raise NotAuthenticatedError("send your API key as 'Authorization: Bearer …'")
    if not parts.store.knows_key(credentials.credentials):
        raise NotAuthenticatedError("this API key is not valid")
