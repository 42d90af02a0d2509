"""A sweep on a Ray of two nodes, of which the one that its trials run on is killed.

    python -m tests.tune.node_lost DIRECTORY

The directory holds `spec.json`, and afterwards `outcome.json`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ray_jobs.ablate import run_sweep
from ray_jobs.report import read_events
from ray_jobs.run_directory import EventWriter, RunDirectory


def kill_when_some_have_ended(run: RunDirectory, cluster: Cluster, node: Any, killed: dict[str, float]) -> None:
    """Kill the node once a trial has ended and another is midway on it; note when each had ended by then."""

    def types() -> list[str]:
        return [event.type for event in read_events(run)]

    while "trial.ended" not in types() or not any(_is_midway(path, node.node_id) for path in _trials(run, ended=False)):
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    killed.update({path.name: (path / "trial.json").stat().st_mtime for path in _trials(run, ended=True)})


def _trials(run: RunDirectory, *, ended: bool) -> list[Path]:
    paths = Path(run.url, "trials").glob("*")
    return [path for path in paths if (path / "trial.json").exists() == ended]


def _is_midway(trial: Path, node_id: str) -> bool:
    """Whether it runs on a node, has a checkpoint to go on from, and a good part of its steps still to do."""
    last: dict[str, Any] = {event.type: event.data for event in read_events(RunDirectory(str(trial)))}
    if not {"train.started", "train.step", "checkpoint.saved"} <= set(last):
        return False
    is_there = last["train.started"]["workers"][0]["node_id"] == node_id
    return is_there and last["train.step"]["step"] < last["train.step"]["total_steps"] / 2


def main() -> None:
    """Run the sweep, and tell what came of it."""
    directory = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=2)
    ray.init(cluster.address, log_to_driver=False)
    run, killed = RunDirectory(str(directory)), dict[str, float]()
    killer = threading.Thread(target=kill_when_some_have_ended, args=(run, cluster, node, killed), daemon=True)
    killer.start()
    with EventWriter(run, "driver", 1) as events:
        run_sweep(run, run.read_sweep_spec(), events, 1)
    outcome = {
        "ended_before": killed,
        "ended": {path.name: (path / "trial.json").stat().st_mtime for path in _trials(run, ended=True)},
        "started": [event.data["trial"] for event in read_events(run) if event.type == "trial.started"],
    }
    ray.shutdown()
    cluster.shutdown()
    (directory / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
