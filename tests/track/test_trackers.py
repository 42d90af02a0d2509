"""Trackers with their real packages, of which those that are not installed are skipped."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError
from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent
from tensorboardX.proto.event_pb2 import SessionLog

from ray_jobs.report import read_events
from ray_jobs.run_directory import RunDirectory
from ray_jobs.track import tracked_events, trackers
from ray_jobs.track.scalars import Point, point_of
from ray_jobs.track.tracked_events import TrackedEventWriter
from ray_jobs.track.trackers import require_packages
from service.errors import InvalidSpecError
from service.spec.job import JobSpec
from service.spec.track import TrackSpec


@pytest.fixture
def spec(job_document: dict[str, Any]) -> JobSpec:
    job_document["track"] = {"tensorboard": False}
    return JobSpec.model_validate(job_document)


def step(number: int, loss: float) -> dict[str, Any]:
    metrics = {"loss": loss, "loss_by_category": {"math": loss}, "learning_rate": 1e-3, "eta_s": 5.0}
    return {"step": number, "total_steps": 4, **metrics, "balance_loss_per_layer": [0.01, 0.02]}


def run_start(run: RunDirectory, spec: JobSpec, track: dict[str, Any], start_step: int, *steps: int) -> None:
    """A start of the workers, which takes these steps; their loss tells which start it was."""
    with TrackedEventWriter(run, "worker0", 1, spec.model_copy(update={"track": TrackSpec(**track)})) as events:
        events.emit("train.started", start_step=start_step)
        for number in steps:
            events.emit("train.step", **step(number, 10 * start_step + number))
        events.emit("eval.held_out", when="after", step=steps[-1], loss={"math": 0.5})
    assert not [event for event in read_events(run) if event.type == "job.warning"]


def test_events_become_scalars_by_name() -> None:
    data = step(3, 2.0) | {"gradient_norm": math.nan, "is_skipped": True, "memory_bytes": None}
    point = point_of("train.step", data)
    assert point is not None
    assert (point.step, point.is_training) == (3, True)
    assert point.scalars == {
        "train/loss": 2.0,
        "train/loss/math": 2.0,
        "train/learning_rate": 1e-3,
        "train/balance_loss/layer_00": 0.01,
        "train/balance_loss/layer_01": 0.02,
        "train/is_skipped": 1.0,
    }
    task = {"when": "after", "step": 4, "task": "gsm8k", "metrics": {"exact_match": {"score": 0.5, "n": 8}}}
    point = point_of("eval.task", task)
    assert point is not None
    assert point.scalars == {"eval/gsm8k/exact_match": 0.5}
    assert point_of("eval.task", task | {"metrics": None, "status": "failed"}).scalars == {}  # type: ignore[union-attr]
    routing = {
        "when": "before",
        "step": 0,
        "num_experts": 8,
        "categories": {"math": {"copies": 90, "effective_experts": 6.5, "same_experts": None}},
        "layers": {"effective_experts": [7.5, 6.0], "load_drift": None},
        "specialisation_by_chance": 0.1,
    }
    point = point_of("eval.routing", routing)
    assert point is not None
    assert point.scalars == {
        "eval/routing/effective_experts/layer_00": 7.5,
        "eval/routing/effective_experts/layer_01": 6.0,
        "eval/routing/math/effective_experts": 6.5,
    }
    assert point_of("checkpoint.saved", {"step": 4}) is None


def records(url: str) -> Iterator[TensorBoardEvent]:
    """What event files hold, file by file in the order of their names: length, checksum, content, checksum."""
    for file in fsspec.open_files(f"{url}/events.out.tfevents.*", "rb"):
        with file as opened:
            while head := opened.read(12):
                yield TensorBoardEvent.FromString(opened.read(struct.unpack("<Q", head[:8])[0]))
                opened.read(4)


@pytest.mark.parametrize("root", ["local", "memory://runs"])
def test_tensorboard_files_reach_the_run_directory_and_go_on_after_a_restart(
    root: str, spec: JobSpec, tmp_path: Path
) -> None:
    run = RunDirectory(f"{tmp_path}/job-1" if root == "local" else f"{root}/{tmp_path.name}/job-1")
    run_start(run, spec, {"tensorboard": True}, 0, 1, 2, 3)
    run_start(run, spec, {"tensorboard": True}, 2, 3, 4)
    written = list(records(run.join("tensorboard")))
    losses = [
        (event.step, value.simple_value)
        for event in written
        for value in event.summary.value
        if value.tag == "train/loss"
    ]
    assert losses == [(1, 1), (2, 2), (3, 3), (3, 23), (4, 24)]
    purged = [event.step for event in written if event.session_log.status == SessionLog.START]
    assert purged == [1, 3], "a reader forgets these steps and all behind them"


def test_tensorboard_shows_each_step_once(spec: JobSpec, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunDirectory(f"{tmp_path}/job-1")
    run_start(run, spec, {"tensorboard": True}, 0, 1, 2, 3)
    run_start(run, spec, {"tensorboard": True}, 2, 3, 4)
    shown = accumulator.EventAccumulator(run.join("tensorboard")).Reload()
    assert [(one.step, one.value) for one in shown.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 23), (4, 24)]
    assert [one.value for one in shown.Scalars("train/balance_loss/layer_01")] == pytest.approx([0.02] * 4)
    assert [(one.step, one.value) for one in shown.Scalars("eval/held_out/math")] == [(4, 0.5)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::FutureWarning")
def test_mlflow_has_one_run_and_each_step_once(spec: JobSpec, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    if find_spec("sqlparse") is None or find_spec("alembic") is None:
        pytest.skip("MLflow cannot keep runs in SQLite here")
    track = {"mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "mixes"}, "tensorboard": False}
    run = RunDirectory(f"{tmp_path}/job-1")
    run_start(run, spec, track, 0, 1, 2, 3)
    run_start(run, spec, track, 2, 3, 4)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("mixes")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.data.tags["sleddog.job_id"] == "job-1"
    assert (found.info.status, found.info.run_name) == ("FINISHED", spec.name)
    assert found.data.params["train.learning_rate"] == str(spec.train.learning_rate)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 1), (2, 2), (3, 3), (4, 24)]


def test_wandb_leaves_its_offline_files_in_the_run_directory(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = RunDirectory(f"{tmp_path}/job-1")
    run_start(run, spec, {"wandb": {"mode": "offline"}, "tensorboard": False}, 0, 1, 2)
    [file] = Path(run.join("wandb")).rglob("run-job-1.wandb")
    assert b"train/balance_loss/layer_01" in file.read_bytes()


class Broken:
    """Takes the first points, then fails."""

    def __init__(self, *_: Any) -> None:
        self.logged: list[Point] = []

    def log(self, points: Sequence[Point]) -> None:
        raise ConnectionError("down")

    def close(self, *, failed: bool) -> None:
        raise AssertionError("was left out")


def test_a_tracker_that_fails_is_told_once_and_the_events_go_on(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked_events, "tracker", Broken)
    run, told = RunDirectory(f"{tmp_path}/job-1"), spec.model_copy(update={"track": TrackSpec()})
    with TrackedEventWriter(run, "worker0", 1, told) as events:
        events.emit("train.started", start_step=0)
        for number in range(1, 4):
            events.emit("train.step", **step(number, 1.0))
    written = read_events(run)
    assert [event.data["step"] for event in written if event.type == "train.step"] == [1, 2, 3]
    [warning] = [event for event in written if event.type == "job.warning"]
    assert warning.data["kind"] == "tracker_failed"
    assert warning.message == "tensorboard is left out: ConnectionError: down"


def test_a_tracker_that_hangs_keeps_no_worker_from_ending(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(Broken, "log", lambda *_: released.wait(60))
    monkeypatch.setattr(Broken, "close", lambda *_, **__: None)
    monkeypatch.setattr(tracked_events, "tracker", Broken)
    monkeypatch.setattr(tracked_events, "_END_S", 0.1)
    run, told = RunDirectory(f"{tmp_path}/job-1"), spec.model_copy(update={"track": TrackSpec()})
    with TrackedEventWriter(run, "worker0", 1, told) as events:
        events.emit("train.started", start_step=0)
        events.emit("train.step", **step(1, 1.0))
    released.set()
    [warning] = [event for event in read_events(run) if event.type == "job.warning"]
    assert "did not take the last steps" in warning.message


def test_workers_that_write_no_events_open_no_tracker(spec: JobSpec, tmp_path: Path) -> None:
    run = RunDirectory(f"{tmp_path}/job-1")
    with TrackedEventWriter(run, "worker1", 1, spec.model_copy(update={"track": TrackSpec()})):
        pass
    assert not Path(run.join("tensorboard")).exists()


def test_a_missing_package_is_told_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trackers, "_PACKAGES", {"tensorboard": "tensorboardX", "mlflow": "sleddog_nowhere"})
    require_packages(TrackSpec())
    with pytest.raises(InvalidSpecError, match=r"track\.mlflow: .*sleddog_nowhere is not installed"):
        require_packages(TrackSpec.model_validate({"mlflow": {}}))
    (tmp_path / "sleddog_nowhere").mkdir()
    with pytest.raises(InvalidSpecError, match="is not installed"):
        require_packages(TrackSpec.model_validate({"mlflow": {}}))


def test_a_secret_in_the_spec_is_refused() -> None:
    TrackSpec.model_validate({"mlflow": {"tracking_uri": "https://mlflow.example"}})
    with pytest.raises(ValidationError, match="in the environment of the cluster"):
        TrackSpec.model_validate(json.loads('{"mlflow": {"tracking_uri": "https://me:pass@mlflow.example"}}'))
