"""How a control plane is set up: flags of `sleddog serve`, or `SLEDDOG_…` variables."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import InvalidSettingsError
from service.schedule.queue import Resources
from service.spec.resources import RunKind

DRIVER_MODULES: Mapping[RunKind, str] = {"job": "ray_jobs.finetune", "sweep": "ray_jobs.ablate"}


@dataclass(frozen=True)
class Settings:
    """Settings of one control plane.

    Attributes:
        data_dir: the store, the API key and, by default, the run directories.
        database_url: SQLAlchemy URL; by default SQLite in `data_dir`.
        secret_file: holds the secret under which API keys are digested, the same for all replicas; by default one in
            `data_dir`, made at the first start.
        runs_url: root of the run directories, as control plane and cluster both see it.
        ray_dashboard_url: of an existing cluster, such as `https://ray.example:8265`; None starts a local head.
        ray_token_path: file with the cluster's authentication token; needed with `ray_dashboard_url`, as `runs_url` is.
        driver_modules: the module that the driver of each kind runs.
        driver_python: interpreter on the cluster.
        max_running_jobs: more wait in the queue.
        max_attempts: starts of a job's driver before a lost one counts as failure.
        reconcile_interval_s: seconds between two looks at the cluster.
        cluster_gpus, cluster_cpus: of an existing cluster that does not grow: no job starts before all its workers fit.
            By default Ray places them as it can.
        open_metrics: let anybody read `/metrics` without a key; else only from this machine.
        allowed_uris: prefixes of what specs may read, such as `s3://our-data/`; empty allows any.
        allow_private_endpoints: let the HTTP endpoints of specs be in private networks and on loopback.
        rate_limit_per_s: requests a second of one key, twice as many at once; 0 for any number.
        allow_private_webhooks: let receivers of messages be in the service's own network, and without TLS.
    """

    data_dir: Path
    database_url: str | None = None
    secret_file: Path | None = None
    runs_url: str | None = None
    ray_dashboard_url: str | None = None
    ray_token_path: Path | None = None
    driver_modules: Mapping[RunKind, str] = field(default_factory=lambda: DRIVER_MODULES)
    driver_python: str = sys.executable
    max_running_jobs: int = 1
    max_attempts: int = 3
    reconcile_interval_s: float = 0.5
    cluster_gpus: float | None = None
    cluster_cpus: float | None = None
    open_metrics: bool = False
    allow_private_webhooks: bool = False
    allowed_uris: tuple[str, ...] = ()
    allow_private_endpoints: bool = True
    rate_limit_per_s: float = 1000.0

    def __post_init__(self) -> None:
        if self.ray_dashboard_url is not None and self.ray_token_path is None:
            raise InvalidSettingsError("an existing cluster needs its token", "--ray-token-path")
        if self.ray_dashboard_url is not None and self.runs_url is None:
            raise InvalidSettingsError("an existing cluster needs run directories that it sees too", "--runs-url")

    @property
    def capacity(self) -> Resources | None:
        """Of an existing cluster, as far as it was told."""
        if self.cluster_gpus is None and self.cluster_cpus is None:
            return None
        gpus = 0.0 if self.cluster_gpus is None else self.cluster_gpus
        return Resources(math.inf if self.cluster_cpus is None else self.cluster_cpus, gpus)

    @property
    def resolved_database_url(self) -> str:
        """The store's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'sleddog.db'}"

    @property
    def resolved_runs_url(self) -> str:
        """The run directories' root."""
        return (self.runs_url or str(self.data_dir.resolve() / "runs")).rstrip("/")

    @property
    def secret_path(self) -> Path:
        """The secret's file."""
        return self.secret_file or self.data_dir / "secret"

    @property
    def api_key_path(self) -> Path:
        """Where the key of the first start is kept for the local command line, readable by its owner only."""
        return self.data_dir / "api-key"
