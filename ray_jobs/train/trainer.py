"""The driver's side of training: place the workers, run them through Ray Train, start them again after a failure.

Each start has a Ray Train run of its own name, without restarts of Ray's own: those would repeat what cannot be mended,
wait for room for ever, and always want as many workers as before. Workers of an earlier start that live on, where
nobody can reach them, end themselves (`ray_jobs.fence`). Workers start from the newest whole checkpoint of any
attempt, by our own manifests. Ray's own resuming by name reads a snapshot file that it writes non-atomically, and two
attempts can overlap for a while after a lost head.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import asdict, replace

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs.fence import Fence, claim_start
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.failed_start import FailedStart
from ray_jobs.train.failures import can_restart, cause_of
from ray_jobs.train.loop import WorkerConfig, run_worker
from ray_jobs.train.placement import await_room, room_name
from ray_jobs.train.process_group import ProcessGroupConfig
from service.spec.job import JobSpec

RAY_TRAIN_DIRECTORY = "ray_train"
"""Below the run directory; nothing that anyone needs."""


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train without the process that deals out Ray datasets: the workers read packed rows themselves.

    A start of the workers is a start of Python for each process, some four seconds of a processor apiece, which a sweep
    pays for every trial. And a start that fails leaves its room to the next.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        failed_start = FailedStart(room_name(RunDirectory(self.train_loop_config["run_url"])))
        return [failed_start, *(callback for callback in callbacks if not isinstance(callback, DatasetsCallback))]


def train(run: RunDirectory, spec: JobSpec, config: WorkerConfig, tell: Callable[[str], None]) -> None:
    """Train, evaluate and export; returns when all is done.

    Args:
        run: the run directory.
        spec: the job's.
        config: for the workers.
        tell: called with the reason before the workers are started again.

    Raises:
        PlacementError: the cluster did not place the workers in time, at the start or after a failure.
        WorkerLostError: they died more often than the spec allows.
        SupersededError: a later attempt was started meanwhile.
        SleddogError: what a worker raised.
    """
    resources = worker_resources(spec)
    use_gpu = "GPU" in resources
    # nor the one that watches for preempted nodes: workers that die with their node are started again without it
    os.environ.setdefault(ENABLE_PREEMPTION_WATCHER_ENV_VAR, "0")
    os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(spec.parallel.placement_timeout_s)  # no other place for it
    for start in itertools.count(1):
        Fence(run, config.attempt).check()  # an attempt that was given up waits for no room
        scaling = ScalingConfig(
            num_workers=await_room(run, spec, resources), use_gpu=use_gpu, resources_per_worker=resources
        )
        config = replace(config, start=claim_start(run, config.attempt))
        trainer = _Trainer(
            run_worker,
            train_loop_config=asdict(config),
            torch_config=ProcessGroupConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(
                name=f"attempt-{config.attempt}-start-{config.start}",
                storage_path=run.join(RAY_TRAIN_DIRECTORY),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            cause = cause_of(error)
            if not can_restart(cause) or start > spec.parallel.max_worker_failures:
                raise cause from error
            tell(f"restart {start} of at most {spec.parallel.max_worker_failures}: {cause}")
        else:
            return


def worker_resources(spec: JobSpec) -> dict[str, float]:
    """What each worker reserves; Ray is connected."""
    return {"CPU": spec.parallel.cpus_per_worker} | ({"GPU": 1.0} if _use_gpu(spec) else {})


def _use_gpu(spec: JobSpec) -> bool:
    if spec.parallel.accelerator == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return spec.parallel.accelerator == "gpu"
