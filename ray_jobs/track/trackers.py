"""The trackers themselves. Each goes on where an earlier start of the same job left off, and keeps each step once.

    TensorBoard   what lies behind the checkpoint that a start goes on from is purged, and written again
    MLflow        the run with the job's id as a tag; steps that it has are left out, since nothing can be taken back
    W&B           the run whose id is the job's; likewise. Offline it cannot know, and `wandb sync` sorts it out

A step that is taken again gives the same numbers, bit by bit where the arithmetic is deterministic, so it does not
matter which of both is kept.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ray_jobs.run_directory import RunDirectory, write_file
from ray_jobs.track.scalars import Point
from service.errors import InvalidSpecError
from service.spec.job import JobSpec
from service.spec.track import TrackSpec

JOB_TAG = "sleddog.job_id"
_MLFLOW_METRICS, _MLFLOW_PARAMS = 1000, 100
"""What MLflow takes in one request."""
_UPLOAD_S = 30.0
_LARGEST_FILE = 8_000_000
"""A file that is copied elsewhere is copied as a whole each time: another one is begun then."""
_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


class Tracker(Protocol):
    """Keeps scalars by step."""

    def log(self, points: Sequence[Point]) -> None:
        """Keep these, in order."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is left; the run has ended, well or not."""
        ...


def configured(spec: TrackSpec) -> list[str]:
    """Names of the trackers that a job asks for."""
    return [name for name in _PACKAGES if getattr(spec, name)]


def require_packages(spec: TrackSpec) -> None:
    """Check that all trackers can be imported.

    Raises:
        InvalidSpecError: one cannot.
    """
    for name in configured(spec):
        found = find_spec(_PACKAGES[name])
        if found is None or found.origin is None:  # a mere folder of that name has no origin
            message = f"the package {_PACKAGES[name]} is not installed on the cluster"
            raise InvalidSpecError(message, f"track.{name}")


def tracker(name: str, run: RunDirectory, spec: JobSpec, start_step: int) -> Tracker:
    """Open a tracker.

    Args:
        name: of `configured`.
        run: the run directory.
        spec: the job's.
        start_step: optimiser steps done.
    """
    if name == "tensorboard":
        return TensorBoardTracker(run, start_step)
    return MlflowTracker(run, spec) if name == "mlflow" else WandbTracker(run, spec)


class Folder:
    """A local folder that a package writes to, and its copy in the run directory where that is not local.

    Args:
        url: of the folder.
    """

    def __init__(self, url: str) -> None:
        filesystem, path = url_to_fs(url)
        self._url, self._copied = url, dict[Path, int]()
        self._scratch = None if isinstance(filesystem, LocalFileSystem) else tempfile.TemporaryDirectory()
        self.path = Path(path if self._scratch is None else self._scratch.name)
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def is_copied(self) -> bool:
        """Whether it lies elsewhere than the run directory."""
        return self._scratch is not None

    def upload(self) -> None:
        """Copy what has changed."""
        if not self.is_copied:
            return
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            changed_ns = path.stat().st_mtime_ns
            if self._copied.get(path) != changed_ns:
                write_file(f"{self._url}/{path.relative_to(self.path)}", path.read_bytes())
                self._copied[path] = changed_ns

    def close(self) -> None:
        """Copy it for the last time."""
        self.upload()
        if self._scratch is not None:
            self._scratch.cleanup()


class TensorBoardTracker:
    """Event files below the run directory's `tensorboard/`."""

    def __init__(self, run: RunDirectory, start_step: int) -> None:
        self._folder = Folder(run.join("tensorboard"))
        self._writer = self._new_file(purge_step=start_step + 1)
        self._uploaded_s = time.monotonic()

    def _new_file(self, purge_step: int | None = None) -> Any:
        from tensorboardX import SummaryWriter

        # names begin with the second, and are read in order
        suffix = f".{time.time_ns()}"
        return SummaryWriter(str(self._folder.path), purge_step=purge_step, filename_suffix=suffix)

    def log(self, points: Sequence[Point]) -> None:
        """See `Tracker`."""
        from tensorboardX.proto.summary_pb2 import Summary

        for point in points:
            # one record for all of a step's scalars: a record each took several times as long
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.scalars.items()]
            self._writer.file_writer.add_summary(Summary(value=values), point.step, walltime=point.time_s)
        self._writer.flush()
        if self._folder.is_copied and time.monotonic() - self._uploaded_s > _UPLOAD_S:
            self._upload()

    def _upload(self) -> None:
        newest = max(self._folder.path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        if newest.stat().st_size > _LARGEST_FILE:
            self._writer.close()
            self._writer = self._new_file()
        self._folder.upload()
        self._uploaded_s = time.monotonic()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002  its files have no outcome
        """See `Tracker`."""
        self._writer.close()
        self._folder.close()


class MlflowTracker:
    """A run on a tracking server."""

    def __init__(self, run: RunDirectory, spec: JobSpec) -> None:
        from mlflow import MlflowClient

        settings = spec.track.mlflow
        assert settings is not None, "asked for"
        self._client = MlflowClient(settings.tracking_uri)
        experiment = self._client.get_experiment_by_name(settings.experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(settings.experiment)
        found = self._client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{run.job_id}'")
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags, name = {JOB_TAG: run.job_id}, settings.run_name or spec.name
            self._run_id = self._client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
            self._log_spec(spec)
        taken = self._client.get_metric_history(self._run_id, "train/learning_rate")
        self._last_step = max((metric.step for metric in taken), default=0)

    def _log_spec(self, spec: JobSpec) -> None:
        from mlflow.entities import Param

        document = spec.model_dump(mode="json", include={"name", "seed", "model", "train", "parallel"})
        params = [Param(name, str(value)) for name, value in _leaves(document)]
        for start in range(0, len(params), _MLFLOW_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MLFLOW_PARAMS])

    def log(self, points: Sequence[Point]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * point.time_s), point.step)
            for point in points
            if not (point.is_training and point.step <= self._last_step)
            for name, value in point.scalars.items()
        ]
        for start in range(0, len(metrics), _MLFLOW_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MLFLOW_METRICS])

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, run: RunDirectory, spec: JobSpec) -> None:
        import wandb

        settings = spec.track.wandb
        assert settings is not None, "asked for"
        self._folder = Folder(run.join("wandb"))
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            id=run.job_id,
            name=spec.name,
            resume="allow",
            dir=str(self._folder.path),
            config=spec.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._first_step = self._run.step

    def log(self, points: Sequence[Point]) -> None:
        """See `Tracker`."""
        for point in points:
            if point.step >= self._first_step:
                self._run.log(point.scalars, step=point.step)

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))
        self._folder.close()


def _leaves(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted path."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
