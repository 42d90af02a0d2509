"""What ends a run, what restarts it, and what a restart does again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ray_jobs.train.failures import EndRunOnKnownError, cause_of, placement_tries
from service.errors import CheckpointError, NonFiniteLossError
from service.spec.train import ParallelSpec

SCRIPT = "tests.train.driver_run"
ROOT = Path(__file__).parents[2]


def test_the_cause_of_an_ended_run_is_found() -> None:
    spec = ParallelSpec(num_workers=2)
    torn = CheckpointError("torn", "model.base")
    assert cause_of(ControllerError(torn), spec) is torn
    assert cause_of(WorkerGroupError("", {0: RuntimeError("connection closed"), 1: torn}), spec) is torn
    assert cause_of(WorkerGroupError("", {0: RuntimeError("connection closed")}), spec).code == "worker_lost"
    timeout = cause_of(ControllerError(WorkerGroupStartupTimeoutError(2)), spec)
    assert (timeout.code, timeout.field) == ("placement_timeout", "parallel.num_workers")
    assert cause_of(ControllerError(WorkerGroupStartupFailedError("died")), spec).code == "worker_lost"


def test_only_errors_of_our_own_end_the_run() -> None:
    callback = EndRunOnKnownError()
    callback.after_exception(None, {0: RuntimeError("out of memory"), 1: ValueError("?")})
    with pytest.raises(NonFiniteLossError, match="step 3"):
        callback.after_exception(None, {0: RuntimeError("connection closed"), 1: NonFiniteLossError("step 3")})


@pytest.mark.parametrize(
    ("timeout_s", "deaths", "tries"), [(1800, 3, 30), (1801, 3, 31), (60, 3, 4), (60, 0, 1), (10, 0, 1), (1, 1, 2)]
)
def test_the_tries_to_place_a_group_last_as_long_as_the_spec_allows(timeout_s: float, deaths: int, tries: int) -> None:
    spec = ParallelSpec(placement_timeout_s=timeout_s, max_worker_failures=deaths)
    number, try_s = placement_tries(spec)
    assert number == tries
    assert number * try_s == pytest.approx(timeout_s)
    assert try_s <= 60
    assert number > deaths, "a worker that dies while its group starts is not held against the cluster"


def drive(case: str, directory: Path, document: dict[str, Any]) -> Any:
    directory.mkdir(exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(document))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", SCRIPT, case, str(directory)],
        cwd=ROOT,
        env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((directory / "outcome.json").read_text())


@pytest.fixture
def document(job_document: dict[str, Any]) -> dict[str, Any]:
    job_document["parallel"] |= {"max_worker_failures": 1, "placement_timeout_s": 20.0}
    return job_document


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_of_one_worker_ends_the_run_at_once(document: dict[str, Any], tmp_path: Path) -> None:
    outcome = drive("one_worker_raises", tmp_path / "run", document)
    assert (outcome["error"], outcome["field"]) == ("invalid_spec", "train.precision")
    assert outcome["starts"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_that_finds_no_room_again_ends_the_run(document: dict[str, Any], tmp_path: Path) -> None:
    outcome = drive("the_room_is_taken", tmp_path / "run", document)
    assert (outcome["error"], outcome["field"]) == ("placement_timeout", "parallel.num_workers")
    assert outcome["starts"] == 1
    assert 20 < outcome["seconds"] < 60


@pytest.mark.ray
@pytest.mark.slow
def test_a_later_attempt_does_only_what_is_left(document: dict[str, Any], tmp_path: Path) -> None:
    first, second = drive("attempts", tmp_path / "run", document)
    total = first["report"]["train"]["planned_steps"]
    assert [outcome["steps"] for outcome in (first, second)] == [total, 0]
    assert [outcome["evaluations"] for outcome in (first, second)] == [["before", "after"], ["after"]]
    stages = ("prepare", "train", "evaluate", "export")
    assert first["reused"] == dict.fromkeys(stages, False)
    assert second["reused"] == {"prepare": True, "train": True, "evaluate": False, "export": True}
    assert second["report"]["export"] == first["report"]["export"]
    assert second["report"]["held_out"] == first["report"]["held_out"], "the same weights were evaluated"
    assert [stage["stage"] for stage in second["report"]["stages"]] == list(stages)
    assert second["report"]["train"]["steps_taken_twice"] == 0
