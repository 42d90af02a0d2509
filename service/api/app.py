"""The FastAPI application, and how its parts are put together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.api import health, jobs, problems
from service.api.dependencies import ControlPlane
from service.backends.base import Backend
from service.backends.local_ray import LocalRay
from service.backends.ray_jobs import RayJobs
from service.errors import InvalidSpecError
from service.reconcile import Reconciler
from service.settings import Settings
from service.store.store import Store, migrate, open_engine

MIN_LOCAL_CPUS = 3
"""Two training workers and a data task fit, also on a machine with fewer cores."""


def create_app(parts: ControlPlane) -> FastAPI:
    """The application over given parts; the reconciler runs while it is served."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        parts.reconciler.start()
        yield
        parts.reconciler.stop()

    app = FastAPI(
        title="Sleddog",
        summary="Fine-tunes Mixture-of-Experts language models on a Ray cluster.",
        version=version("sleddog"),
        lifespan=lifespan,
    )
    app.state.control_plane = parts
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(health.router)
    return app


def open_store(settings: Settings) -> Store:
    """The migrated store; on the first start a key is made and kept for the local command line."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_engine(settings.resolved_database_url)
    migrate(engine)
    return Store(engine)


@contextmanager
def open_backend(settings: Settings) -> Iterator[Backend]:
    """The cluster: an existing one, or a local head that lives for the block.

    Raises:
        InvalidSpecError: an existing cluster is named without a token.
        BackendUnavailableError: it does not answer, or lets anybody in.
    """
    if settings.ray_dashboard_url is not None:
        if settings.ray_token_path is None:
            raise InvalidSpecError("an existing cluster needs its token: give --ray-token-path")
        token = settings.ray_token_path.read_text().strip()
        cluster = _ray_jobs(settings, settings.ray_dashboard_url, token, shares_filesystem=False)
        with closing(cluster):
            cluster.require_authentication()
            cluster.ping()
            yield cluster
        return

    head = LocalRay(settings.data_dir / "ray-token", max(os.cpu_count() or 1, MIN_LOCAL_CPUS))
    try:
        head.start()
        with closing(_ray_jobs(settings, head.dashboard_url, head.token, shares_filesystem=True)) as cluster:
            yield cluster
    finally:
        head.stop()


def _ray_jobs(settings: Settings, url: str, token: str, *, shares_filesystem: bool) -> RayJobs:
    return RayJobs(
        url,
        token,
        python=settings.driver_python,
        module=settings.driver_module,
        shares_filesystem=shares_filesystem,
    )


def control_plane(settings: Settings, store: Store, backend: Backend) -> ControlPlane:
    """Put the parts together."""
    reconciler = Reconciler(
        store,
        backend,
        max_running_jobs=settings.max_running_jobs,
        max_attempts=settings.max_attempts,
        interval_s=settings.reconcile_interval_s,
    )
    return ControlPlane(store, backend, reconciler, settings.resolved_runs_url)
