"""The driver's side of training: place the workers, run them through Ray Train, restart them after a death.

Each attempt of a job has a Ray Train run of its own name, started from the newest whole checkpoint of any earlier
attempt. Ray's own resuming by name reads a snapshot file that it writes non-atomically, and two attempts can overlap
for a while after a lost head; separate names keep a late writer out of the newer attempt's directory.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray
from fsspec.core import url_to_fs
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs.run_directory import RunDirectory, local_directory
from ray_jobs.train.checkpoint import MANIFEST_FILE, is_whole, saved_step
from ray_jobs.train.loop import WorkerConfig, run_worker
from service.errors import PlacementError, SleddogError, WorkerLostError
from service.spec.job import JobSpec

CHECKPOINTS = "checkpoints"
NUM_CHECKPOINTS_KEPT = 2


def train(run: RunDirectory, spec: JobSpec, config: WorkerConfig) -> None:
    """Train, evaluate and export; returns when all is done.

    Args:
        run: the run directory.
        spec: the job's.
        config: for the workers.

    Raises:
        PlacementError: the cluster did not place the workers in time.
        WorkerLostError: they died more often than the spec allows.
        SleddogError: what a worker raised.
    """
    use_gpu = _use_gpu(spec)
    resources: dict[str, float] = {"CPU": spec.parallel.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
    _await_placement(spec, resources)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=asdict(config),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.parallel.num_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"attempt-{config.attempt}",
            storage_path=run.join(CHECKPOINTS),
            failure_config=FailureConfig(max_failures=spec.parallel.max_worker_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=NUM_CHECKPOINTS_KEPT),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error


def newest_checkpoint(run: RunDirectory) -> str | None:
    """URL of the whole checkpoint with the most steps, of any attempt; None when there is none."""
    filesystem, root = url_to_fs(run.join(CHECKPOINTS))
    steps: dict[str, int] = {}
    for manifest in filesystem.glob(f"{root}/*/*/{MANIFEST_FILE}"):
        url = filesystem.unstrip_protocol(manifest.rpartition("/")[0])
        with local_directory(url) as directory:
            if is_whole(directory):
                steps[url] = saved_step(directory)
    return max(steps, key=lambda url: steps[url], default=None)


def _use_gpu(spec: JobSpec) -> bool:
    if spec.parallel.accelerator == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return spec.parallel.accelerator == "gpu"


def _await_placement(spec: JobSpec, resources: dict[str, float]) -> None:
    """Reserve room for all workers at once and give it back: Ray Train itself would wait for ever."""
    group = placement_group([resources] * spec.parallel.num_workers)
    try:
        if not group.wait(spec.parallel.placement_timeout_s):
            raise PlacementError(
                f"{spec.parallel.num_workers} workers with {resources} each did not fit the cluster within "
                f"{spec.parallel.placement_timeout_s:.0f} s; it has {ray.cluster_resources()}",
                "parallel.num_workers",
            )
    finally:
        remove_placement_group(group)


def _cause(error: TrainingFailedError) -> SleddogError:
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, SleddogError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return WorkerLostError(f"the training workers failed too often: {error}")
