"""A sweep on a Ray whose larger node, which its trials lie on with all their processes, is killed twice.

    python -m tests.tune.node_lost DIRECTORY

The directory holds `spec.json`, and afterwards `outcome.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from ray_jobs.ablate import run_sweep
from ray_jobs.report import read_events
from ray_jobs.run_directory import EventWriter, RunDirectory
from ray_jobs.train.placement import room_name

HEAD = {"num_cpus": 1, "memory": 2, "include_dashboard": False}
"""Tune reserves a byte for each trial, and prefers the node that has more of them left: the other one."""


class Killer:
    """Kills the larger node when the workers of a trial start, and its successor when a trial is midway.

    Args:
        run: the sweep's.
        cluster: where the node is, and no other beside the head.
        node: the node.
        sweep: ends with it.
    """

    def __init__(self, run: RunDirectory, cluster: Cluster, node: Any, sweep: Future[str]) -> None:
        self._run, self._cluster, self._node, self._sweep = run, cluster, node, sweep
        self.ended_before: dict[str, float] = {}

    def kill_twice(self) -> None:
        """In the main thread, which alone can start nodes."""
        self._kill_when(lambda trial: self._has_one_ended() and self._starts_workers(trial))
        self.ended_before = {path.name: ended_at(path) for path in trials(self._run, ended=True)}
        # until then the head has room for one trial, while two have lost theirs
        self._wait_for(lambda trial: any(event.attempt == 2 for event in read_events(RunDirectory(str(trial)))))
        self._node = self._cluster.add_node(num_cpus=2)
        self._kill_when(self._is_midway)

    def _kill_when(self, is_time: Callable[[Path], bool]) -> None:
        self._wait_for(is_time)
        self._cluster.remove_node(self._node, allow_graceful=False)

    def _wait_for(self, condition: Callable[[Path], bool]) -> None:
        """For a trial that runs, or the sweep's end."""
        while not self._sweep.done() and not any(condition(path) for path in trials(self._run, ended=False)):
            time.sleep(0.1)

    def _has_one_ended(self) -> bool:
        return any(event.type == "trial.ended" for event in read_events(self._run))

    def _starts_workers(self, trial: Path) -> bool:
        """Whether room on the node is reserved for them, and was a while ago: Ray Train has it, and starts them."""
        groups = self._groups(trial)
        time.sleep(1.5)
        return bool(groups & self._groups(trial)) and self._node_of_workers(trial) is None

    def _groups(self, trial: Path) -> set[str]:
        name, node = room_name(RunDirectory(str(trial))), self._node.node_id
        groups = placement_group_table().items()
        return {key for key, group in groups if group["name"] == name and node in group["bundles_to_node_id"].values()}

    def _is_midway(self, trial: Path) -> bool:
        """Whether it runs on the node, has a checkpoint to go on from, and a good part of its steps still to do."""
        last = {event.type: event.data for event in read_events(RunDirectory(str(trial)))}
        if "checkpoint.saved" not in last or self._node_of_workers(trial) != self._node.node_id:
            return False
        step: Any = last["train.step"]
        return bool(step["step"] < step["total_steps"] / 2)

    def _node_of_workers(self, trial: Path) -> str | None:
        """Where they last began to train; None if they never did."""
        events: list[Any] = [event for event in read_events(RunDirectory(str(trial))) if event.type == "train.started"]
        return events[-1].data["workers"][0]["node_id"] if events else None


def trials(run: RunDirectory, *, ended: bool) -> list[Path]:
    """Directories of those that have ended, or have not."""
    paths = Path(run.url, "trials").glob("*")
    return [path for path in paths if (path / "trial.json").exists() == ended]


def ended_at(trial: Path) -> float:
    """When it was written down."""
    return (trial / "trial.json").stat().st_mtime


def main() -> None:
    """Run the sweep, and tell what came of it."""
    directory = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    node = cluster.add_node(num_cpus=2)
    run = RunDirectory(str(directory))
    ray.init(cluster.address, log_to_driver=False)
    with EventWriter(run, "driver", 1) as events, ThreadPoolExecutor(1) as pool:
        sweep = pool.submit(run_sweep, run, run.read_sweep_spec(), events, 1)
        killer = Killer(run, cluster, node, sweep)
        killer.kill_twice()
        sweep.result()
    outcome = {
        "ended_before": killer.ended_before,
        "ended": {path.name: ended_at(path) for path in trials(run, ended=True)},
        "started": [event.data["trial"] for event in read_events(run) if event.type == "trial.started"],
    }
    ray.shutdown()
    cluster.shutdown()
    (directory / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
