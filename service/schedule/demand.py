"""What a job or a sweep needs at once, read from its stored spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.schedule.queue import Resources


@dataclass(frozen=True)
class Demand:
    """What its workers need together.

    Attributes:
        gpus: workers that train at a time, each of which counts as a GPU in quotas, also where it runs on CPUs.
        min_workers: without which it does not train.
        cpus_per_worker: of each.
        takes_gpus: whether each worker takes a GPU where there are any.
    """

    gpus: int
    min_workers: int
    cpus_per_worker: float
    takes_gpus: bool

    def needs(self, capacity: Resources | None) -> Resources:
        """What must be free at once.

        Args:
            capacity: of the cluster; None when that is not known.
        """
        has_gpus = capacity is None or capacity.gpus > 0
        gpus = self.min_workers if has_gpus and self.takes_gpus else 0
        return Resources(self.min_workers * self.cpus_per_worker, gpus)


def demand_of(spec: Mapping[str, Any]) -> Demand:
    """Of a job or a sweep. A sweep takes as many trials at a time as there is room for; it starts with one."""
    parallel = spec.get("base", spec)["parallel"]
    return Demand(
        gpus=_workers(spec, parallel, "num_workers"),
        min_workers=_workers(spec, parallel, "min_workers"),
        cpus_per_worker=float(parallel["cpus_per_worker"]),
        takes_gpus=parallel["accelerator"] != "cpu",
    )


def _workers(spec: Mapping[str, Any], parallel: Mapping[str, Any], field: str) -> int:
    """Of a job; of a sweep those of a trial of its largest stage."""
    workers = [int(parallel[field] or parallel["num_workers"])]
    for stage in spec.get("stages", ()):
        workers.append(int(stage["changes"].get("parallel.num_workers") or workers[0]))
    return max(workers[1:] or workers)
