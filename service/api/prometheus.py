"""`/metrics`: the control plane and what runs on it, for Prometheus.

Requests are measured here; `control_plane_metrics` and `job_metrics` tell the rest. Ids of jobs are labels of running
ones only: their number is bounded, unlike that of all jobs that ever were.

Anybody on this machine may read it, as an agent beside the service does, and otherwise whoever has a key to the default
project. With `--open-metrics` all may who reach the port: names and figures of running jobs are told, no data and no
spec. What a proxy has passed on comes from elsewhere, even when the proxy is on this machine.
"""

from __future__ import annotations

import time
from ipaddress import ip_address

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import Credentials, RequireRole
from service.api.control_plane_metrics import ControlPlaneCollector
from service.api.dependencies import Parts
from service.api.runs import PROBLEMS
from service.errors import NotAuthorizedError
from service.spec.access import DEFAULT_PROJECT

router = APIRouter(tags=["health"])

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpMetrics:
    """ASGI middleware that counts requests and times their answers.

    The time is that to the first byte: a stream is answered when it begins. Routes are templates, so that ids do not
    make a series each; what leads nowhere is one route, `none`.

    Args:
        app: the application within.
        registry: where the figures go.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        labels = ("method", "route", "status")
        self._requests = Counter("sleddog_http_requests", "Requests answered", labels, registry=registry)
        self._seconds = Histogram(
            "sleddog_http_request_seconds",
            "Seconds until the answer begins",
            ("method", "route"),
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - start)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:  # answered further out, as 500
            self._note(scope, 500, time.perf_counter() - start)
            raise

    def _note(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path_format", "none")
        self._requests.labels(scope["method"], route, status).inc()
        self._seconds.labels(scope["method"], route).observe(duration_s)


def install(app: FastAPI) -> None:
    """Measure an application's requests from now on, into a registry of its own."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    app.state.registry = registry
    if app.state.control_plane is not None:
        registry.register(ControlPlaneCollector(app.state.control_plane))
    app.add_middleware(HttpMetrics, registry=registry)


def is_local(request: Request) -> bool:
    """Whether a request was made on this machine, by nobody for another."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def require_scraper(request: Request, parts: Parts, credentials: Credentials) -> None:
    """Refuse who is neither on this machine nor has a key to the default project, unless the metrics are open."""
    if parts.open_metrics or is_local(request):
        return
    who = await RequireRole("viewer")(request, parts, credentials)
    if who.project != DEFAULT_PROJECT:
        raise NotAuthorizedError(f"this is of all projects, and for members of project {DEFAULT_PROJECT} only")


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"},
        401: PROBLEMS[401],
        403: PROBLEMS[403],
    },
    dependencies=[Depends(require_scraper)],
)
def get_metrics(request: Request) -> Response:
    """Jobs by status, the queue, the reconciler, requests, and what running jobs measure, for Prometheus."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
