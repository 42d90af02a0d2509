"""What a job or a sweep needs at once, read from its stored spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.schedule.queue import Resources


def gpus_of(spec: Mapping[str, Any]) -> int:
    """Workers that train at a time, each of which counts as a GPU in quotas, also where it runs on CPUs."""
    return _workers(spec, "num_workers")


def needs_of(spec: Mapping[str, Any], capacity: Resources | None) -> Resources:
    """What all its workers need at once: those without which it does not train.

    Args:
        spec: of the job or sweep. A sweep takes as many trials at a time as there is room for; it starts with one.
        capacity: of the cluster; None when that is not known.
    """
    parallel = _base(spec)["parallel"]
    workers = _workers(spec, "min_workers")
    has_gpus = capacity is None or capacity.gpus > 0
    gpus = workers if has_gpus and parallel["accelerator"] != "cpu" else 0
    return Resources(workers * float(parallel["cpus_per_worker"]), gpus)


def _base(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    base: Mapping[str, Any] = spec.get("base", spec)
    return base


def _workers(spec: Mapping[str, Any], field: str) -> int:
    """Of a job; of a sweep those of a trial of its largest stage."""
    parallel = _base(spec)["parallel"]
    workers = [int(parallel[field] or parallel["num_workers"])]
    for stage in spec.get("stages", ()):
        workers.append(int(stage["changes"].get("parallel.num_workers") or workers[0]))
    return max(workers[1:] or workers)
