"""The FastAPI application, and how its parts are put together."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from service.api import (
    accounts,
    comparison,
    datasets,
    files,
    fine_tuning,
    health,
    jobs,
    lifecycle,
    metrics,
    models,
    outcomes,
    problems,
    prometheus,
    queue,
    streams,
    sweeps,
    web,
    webhooks,
)
from service.api.audit_middleware import AuditMiddleware
from service.api.dependencies import ControlPlane
from service.api.security_headers import SecurityHeaders
from service.attempts import Limits
from service.backends.base import Backend
from service.backends.local_ray import LocalRay
from service.backends.ray_jobs import RayJobs
from service.datasets.datasets import open_datasets
from service.errors import ConflictError, SchemaError
from service.reconcile import Reconciler
from service.run_reader import require_writable
from service.schedule.queue import Resources
from service.server_secret import load_secret
from service.settings import Settings
from service.store.engine import migrate, open_engine, require_current_schema
from service.store.store import Store
from service.uri_policy import UriPolicy

MAX_BODY_BYTES = 4 * 2**20
"""Of a request: a spec with a thousand sources is a tenth of it."""
MAX_PART_BYTES = 65 * 2**20
"""Of a part of a dataset, whose own limit is a little lower."""
MIN_LOCAL_CPUS = 3
"""Two training workers and a data task fit, also on a machine with fewer cores."""


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """Of the API. Made once a process: at its first request each finds out what it asks for, half a second in all."""
    router = APIRouter()
    for module in (jobs, sweeps, streams, metrics, outcomes, comparison, lifecycle, prometheus, webhooks, accounts):
        router.include_router(module.router)
    router.include_router(datasets.router, max_body_size=MAX_PART_BYTES)
    router.include_router(files.router, max_body_size=sys.maxsize)  # it limits the length itself, and says what to do
    for module in (fine_tuning, models, queue, health):
        router.include_router(module.router)
    return tuple(router.routes)


def create_app(parts: ControlPlane) -> FastAPI:
    """The application over given parts; the reconciler runs while it is served."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        parts.reconciler.start()
        parts.datasets.worker.start()
        parts.webhook_sender.start()
        yield
        parts.webhook_sender.stop()
        parts.datasets.worker.stop()
        parts.reconciler.stop()

    app = FastAPI(
        title="Sleddog",
        summary="Fine-tunes Mixture-of-Experts language models on a Ray cluster.",
        version=version("sleddog"),
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
        routes=[*_routes()],
        docs_url=None,  # these pages would load scripts from elsewhere; `/openapi.json` can be opened by any viewer
        redoc_url=None,
    )
    app.state.control_plane = parts
    problems.install(app)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AuditMiddleware)
    prometheus.install(app)
    web.install(app)
    return app


def open_store(settings: Settings) -> Store:
    """The store. An embedded one is brought to this version's schema; a server's is an operator's to migrate.

    Raises:
        SchemaError: the schema is not of this version.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_engine(settings.resolved_database_url)
    if engine.dialect.name == "sqlite":
        migrate(engine)
    else:
        try:
            require_current_schema(engine)
        except SchemaError:
            engine.dispose()
            raise
    return Store(engine, load_secret(settings.secret_path, may_create=settings.secret_file is None))


@contextmanager
def open_backend(settings: Settings) -> Iterator[Backend]:
    """The cluster: an existing one, or a local head that lives for the block.

    Raises:
        ConflictError: another local head lives in the same data directory.
        BackendUnavailableError: the cluster does not answer, or lets anybody in.
    """
    if settings.ray_dashboard_url is not None:
        assert settings.ray_token_path is not None, "the settings hold both or neither"
        token = settings.ray_token_path.read_text().strip()
        with closing(_ray_jobs(settings, settings.ray_dashboard_url, token)) as cluster:
            cluster.require_authentication()
            cluster.ping()
            yield cluster
        return

    with _only_user(settings.data_dir):
        num_cpus = max(os.cpu_count() or 1, MIN_LOCAL_CPUS)
        head = LocalRay(settings.data_dir / "ray-token", num_cpus)
        try:
            head.start()
            with closing(_ray_jobs(settings, head.dashboard_url, head.token, num_cpus)) as cluster:
                yield cluster
        finally:
            head.stop()


@contextmanager
def _only_user(data_dir: Path) -> Iterator[None]:
    """Keep a second local head off the data directory: each would take the other's drivers for lost."""
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"a service already runs on {data_dir}: post to it with `sleddog submit`, or give another --data-dir"
            ) from None
        yield


def _ray_jobs(settings: Settings, url: str, token: str, local_cpus: int | None = None) -> RayJobs:
    return RayJobs(
        url,
        token,
        python=settings.driver_python,
        modules=settings.driver_modules,
        shares_filesystem=local_cpus is not None,
        max_cpus=local_cpus,
        capacity=settings.capacity if local_cpus is None else Resources(local_cpus),
    )


def assemble(settings: Settings, store: Store, backend: Backend) -> ControlPlane:
    """Put the parts of a control plane together.

    Raises:
        InvalidSettingsError: the run directories' root cannot be written to.
    """
    require_writable(settings.resolved_runs_url)
    uploaded = open_datasets(store, settings.resolved_runs_url)
    reconciler = Reconciler(
        store,
        backend,
        max_running_jobs=settings.max_running_jobs,
        limits=Limits(max_attempts=settings.max_attempts),
        interval_s=settings.reconcile_interval_s,
        resolve=uploaded.resolve,
    )
    return ControlPlane(
        store,
        backend,
        reconciler,
        settings.resolved_runs_url,
        uploaded,
        open_metrics=settings.open_metrics,
        allow_private_webhooks=settings.allow_private_webhooks,
        uri_policy=UriPolicy(settings.allowed_uris, settings.allow_private_endpoints),
        rate_limit_per_s=settings.rate_limit_per_s,
    )
