"""`/healthz` and `/readyz`: for load balancers, without a key."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Response, status
from sqlalchemy.exc import SQLAlchemyError

from service.api.dependencies import Parts
from service.errors import BackendUnavailableError
from service.spec.resources import Health

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok", version=version("sleddog"))


@router.get("/readyz", responses={503: {"model": Health, "description": "The store or the cluster does not answer"}})
def readyz(parts: Parts, response: Response) -> Health:
    """The store and the cluster answer too."""
    store, cluster = "ok", "ok"
    try:
        parts.store.ping()
    except SQLAlchemyError as error:
        store = type(error).__name__
    try:
        parts.backend.ping()
    except BackendUnavailableError as error:
        cluster = str(error)
    is_ready = store == cluster == "ok"
    if not is_ready:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Health(status="ok" if is_ready else "unavailable", store=store, cluster=cluster, version=version("sleddog"))
