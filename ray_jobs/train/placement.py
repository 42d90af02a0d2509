"""Room for the training workers: how many may take part, and for how many the cluster has room.

The global batch is the same on any number of workers: each accumulates as many rows as it takes.

Room is looked for by reserving it for a moment. Ray frees a reservation when it is told to, or with the whole job, but
not with the process that made it. A trial of a sweep is only a task of the sweep's job: if its processes are lost, what
they had reserved, or still waited for, is in the way until the sweep ends. So all reservations for a run have a name
that follows from it, by which others free them: the sweep's driver, and whoever next starts the run's workers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

from ray_jobs.run_directory import RunDirectory
from service.errors import PlacementError
from service.spec.job import JobSpec

_PATIENCE_S = 60.0
"""How long all workers are waited for before fewer of them begin, at most: a node that restarts is back by then."""
_TRY_S = 5.0
"""Room that is there is given within a second or two."""


def worker_counts(spec: JobSpec) -> list[int]:
    """Numbers of workers that the run may have, the largest first."""
    parallel, train = spec.parallel, spec.train
    return [
        count
        for count in range(parallel.num_workers, (parallel.min_workers or parallel.num_workers) - 1, -1)
        if count % parallel.expert_parallel_size == 0
        and train.global_batch_rows % (count * train.micro_batch_rows) == 0
    ]


def await_room(run: RunDirectory, spec: JobSpec, resources: dict[str, float]) -> int:
    """Wait until all workers have room at once, or fewer where the spec allows it: Ray Train would wait for ever.

    Args:
        run: that the workers are for.
        spec: the job's.
        resources: of each worker.

    Returns:
        How many there is room for.

    Raises:
        PlacementError: not even the fewest found room in time.
    """
    release_room(run)  # of processes that were lost
    counts, timeout_s = worker_counts(spec), spec.parallel.placement_timeout_s
    deadline = time.monotonic() + timeout_s
    if len(counts) > 1 and _has_room(run, counts[0], resources, min(_PATIENCE_S, timeout_s / 2)):
        return counts[0]
    while (left_s := deadline - time.monotonic()) > 0:
        if (count := _largest_with_room(run, counts, resources, left_s)) is not None:
            return count
    raise PlacementError(
        f"{counts[-1]} workers with {resources} each did not fit the cluster within "
        f"{timeout_s:.0f} s; it has {ray.cluster_resources()}",
        "parallel.num_workers",
    )


def release_room(run: RunDirectory) -> None:
    """Free what is reserved for the workers of a run, if its processes were lost before they could."""
    try:
        left = get_placement_group(room_name(run))
    except ValueError:  # there is none
        return
    remove_placement_group(left)


def room_name(run: RunDirectory) -> str:
    """Of the placement groups for a run's workers."""
    return f"room for {run.url}"


def _largest_with_room(
    run: RunDirectory, counts: Sequence[int], resources: dict[str, float], timeout_s: float
) -> int | None:
    try_s = timeout_s if len(counts) == 1 else min(timeout_s, _TRY_S)
    return next((count for count in counts if _has_room(run, count, resources, try_s)), None)


def _has_room(run: RunDirectory, count: int, resources: dict[str, float], timeout_s: float) -> bool:
    """Reserve the room and give it back at once."""
    group = placement_group([resources] * count, name=room_name(run))
    try:
        return bool(group.wait(timeout_s))
    finally:
        remove_placement_group(group)
