"""The driver's side of training: place the workers, run them through Ray Train, restart them after a death.

Each attempt of a job has a Ray Train run of its own name; its workers start from the newest whole checkpoint of any
attempt. Ray's own resuming by name reads a snapshot file that it writes non-atomically, and two attempts can overlap
for a while after a lost head; separate names keep a late writer out of the newer attempt's directory.
"""

from __future__ import annotations

import os
from dataclasses import asdict

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs.run_directory import CHECKPOINTS_DIRECTORY, RunDirectory
from ray_jobs.train.failures import EndRunOnKnownError, cause_of, placement_tries
from ray_jobs.train.loop import WorkerConfig, run_worker
from service.errors import PlacementError
from service.spec.job import JobSpec

NUM_CHECKPOINTS_KEPT = 2


def train(run: RunDirectory, spec: JobSpec, config: WorkerConfig) -> None:
    """Train, evaluate and export; returns when all is done.

    Args:
        run: the run directory.
        spec: the job's.
        config: for the workers.

    Raises:
        PlacementError: the cluster did not place the workers in time, at the start or after a death.
        WorkerLostError: they died more often than the spec allows.
        SleddogError: what a worker raised.
    """
    use_gpu = _use_gpu(spec)
    resources: dict[str, float] = {"CPU": spec.parallel.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
    _await_placement(spec, resources)
    tries, try_s = placement_tries(spec.parallel)
    os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(try_s)  # Ray Train has no other place for it
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=asdict(config),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.parallel.num_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"attempt-{config.attempt}",
            storage_path=run.join(CHECKPOINTS_DIRECTORY),
            failure_config=FailureConfig(
                max_failures=spec.parallel.max_worker_failures, controller_failure_limit=tries - 1
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=NUM_CHECKPOINTS_KEPT),
            callbacks=[EndRunOnKnownError()],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise cause_of(error, spec.parallel) from error


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
