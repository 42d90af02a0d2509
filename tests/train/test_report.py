from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moe.config import PRESETS
from moe.hf import INDEX_FILE
from ray_jobs.data.prepare import PreparedData
from ray_jobs.report import build_report
from ray_jobs.run_directory import RunDirectory, write_file
from ray_jobs.train.export import commit_export
from ray_jobs.train.loop import HELD_OUT_FILE, SAMPLES_FILE
from ray_jobs.train.summary import summarise_steps
from service.spec.event import EVENTS_DIRECTORY, Event, EventType, segment_name
from service.spec.job import JobSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
WORKERS = [{"rank": rank, "pid": 1, "node_id": node} for rank, node in enumerate("aab")]


class Story:
    """Writes events at times of the test's choosing, one segment each."""

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.number = run, 0

    def tell(self, second: float, attempt: int, type: EventType, stage: Any = None, **data: Any) -> None:
        event = Event(time=START + timedelta(seconds=second), type=type, stage=stage, attempt=attempt, data=data)
        name = segment_name(int(second * 1e9), f"a{attempt}-test", self.number)
        write_file(self.run.join(EVENTS_DIRECTORY, name), event.model_dump_json().encode() + b"\n")
        self.number += 1

    def finish(self, second: float, attempt: int, stage: str, *, reused: bool, **summary: Any) -> None:
        self.tell(second, attempt, "stage.finished", stage, duration_s=0.5, reused=reused, summary=summary)

    def step(self, second: float, attempt: int, step: int, loss: float) -> None:
        data = {"step": step, "total_steps": 3, "loss": loss, "learning_rate": step / 10, "epoch": step / 3}
        data["is_skipped"] = False
        balance = {"balance_loss": 0.04, "balance_loss_floor": 0.04, "balance_loss_per_layer": [0.01] * 4}
        phases = {"data_wait_s": 0.1, "forward_s": 0.5, "backward_s": 1.0, "optimizer_s": 0.25}
        use = {"model_flops": 60.0, "model_flops_unfrozen": 80.0, "model_flops_utilisation": 0.1 * step}
        use["memory_bytes"] = 1000 - step
        self.tell(second, attempt, "train.step", "train", step_s=2.0, tokens=100, **data, **balance, **phases, **use)

    def start(self, second: float, attempt: int, frozen_bytes: int = 0) -> None:
        self.tell(second, attempt, "train.started", "train", workers=WORKERS, frozen_bytes=frozen_bytes)


@pytest.fixture(params=["job-1", "job [a*]?"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> RunDirectory:
    run = RunDirectory(f"{tmp_path}/{request.param}")
    for when, loss in (("before", 4.0), ("after", 3.0)):
        run.write_json(HELD_OUT_FILE.format(when=when), {"step": 0, "loss": {"math": loss}})
        run.write_json(SAMPLES_FILE.format(when=when), {"step": 0, "samples": [{"prompt": "?", "completion": when}]})
    write_file(run.join("exports", "attempt-2-f", INDEX_FILE), b"{}")
    commit_export(run, {"path": run.join("exports", "attempt-2-f"), "attempt": 2, "step": 3})
    return run


def report_of(run: RunDirectory, job_document: dict[str, Any]) -> dict[str, Any]:
    prepared = PreparedData(run.url, run.url, {"packing": {}}, reused=False)
    return build_report(run, JobSpec.model_validate(job_document), prepared, PRESETS["quickstart"])


def test_two_attempts_make_one_report(run: RunDirectory, job_document: dict[str, Any]) -> None:
    story = Story(run)
    # the first attempt dies in its second step, the second one in its export, which its worker group starts once more
    story.tell(0, 1, "stage.started", "prepare")
    story.finish(10, 1, "prepare", reused=False, rows=7)
    story.tell(10, 1, "stage.started", "train")
    story.start(15, 1)
    story.tell(16, 1, "train.proofs", "train", step=0, proofs=[{"name": "data", "passed": True}])
    story.step(20, 1, 1, 4.0)
    story.step(22, 1, 2, 3.9)
    story.tell(50, 2, "stage.started", "prepare")
    story.finish(51, 2, "prepare", reused=True)
    story.tell(51, 2, "stage.started", "train")
    story.start(60, 2)
    story.step(62, 2, 2, 3.8)
    story.step(64, 2, 3, 3.7)
    story.finish(65, 2, "train", reused=False)
    story.tell(65, 2, "stage.started", "evaluate")
    story.finish(70, 2, "evaluate", reused=False)
    story.tell(70, 2, "stage.started", "export")
    story.start(100, 2, frozen_bytes=7)
    story.finish(101, 2, "train", reused=True)
    story.tell(101, 2, "stage.started", "evaluate")
    story.finish(102, 2, "evaluate", reused=True)
    story.tell(102, 2, "stage.started", "export")
    story.finish(110, 2, "export", reused=False)
    report = report_of(run, job_document)
    assert report["stages"] == [
        {"stage": "prepare", "duration_s": 10, "reused": False, "summary": {"rows": 7}},
        {"stage": "train", "duration_s": 55, "reused": False, "summary": {}},
        {"stage": "evaluate", "duration_s": 5, "reused": False, "summary": {}},
        {"stage": "export", "duration_s": 40, "reused": False, "summary": {}},
    ]
    train = report["train"]
    assert train["loss_curve"] == [[1, 4.0], [2, 3.8], [3, 3.7]], "a step taken twice counts once, as it was last"
    assert train["learning_rate_curve"] == [[1, 0.1], [2, 0.2], [3, 0.3]]
    assert (train["steps"], train["planned_steps"], train["steps_taken_twice"], train["restarts"]) == (3, 3, 1, 2)
    assert (train["nodes"], train["tokens"]) == (2, 300)
    assert (train["duration_s"], train["tokens_per_s"], train["epochs"]) == (6.0, 50.0, 1.0)
    assert train["peak_memory_bytes"] == 999
    assert train["phases"] == pytest.approx(
        {"data_wait_s": 0.3, "forward_s": 1.5, "backward_s": 3.0, "optimizer_s": 0.75, "other_s": 0.45}
    )
    assert (train["model_flops"], train["model_flops_utilisation"]) == (180, pytest.approx(0.2))
    assert train["frozen_saving"] == {"memory_bytes": 7, "flops_fraction": 0.25}
    assert report["export"]["path"].endswith("exports/attempt-2-f")
    assert report["held_out"] == {"before": {"math": 4.0}, "after": {"math": 3.0}}
    assert report["samples"] == [{"prompt": "?", "before": "before", "after": "after"}]


def test_an_undisturbed_run_says_what_it_reused(run: RunDirectory, job_document: dict[str, Any]) -> None:
    story = Story(run)
    for second, stage in ((0, "prepare"), (1, "train"), (9, "evaluate"), (12, "export")):
        story.tell(second, 1, "stage.started", stage)
        if stage == "train":
            story.start(2, 1)
            story.step(4, 1, 1, 4.0)
        story.finish(second + 1.5, 1, stage, reused=stage == "prepare")
    report = report_of(run, job_document)
    assert report["train"]["frozen_saving"] is None
    stages = report["stages"]
    assert [(stage["stage"], stage["duration_s"], stage["reused"]) for stage in stages] == [
        ("prepare", 1.5, True),
        ("train", 1.5, False),
        ("evaluate", 1.5, False),
        ("export", 1.5, False),
    ]


def test_no_utilisation_is_told_where_the_peak_is_not_known() -> None:
    step = {"step_s": 2.0, "model_flops": 1.0, "model_flops_unfrozen": 1.0, "memory_bytes": 1}
    step |= dict.fromkeys(("data_wait_s", "forward_s", "backward_s", "optimizer_s"), 0.5)
    known = summarise_steps([step | {"model_flops_utilisation": 0.5}, step | {"model_flops_utilisation": 0.3}], 0)
    assert known["model_flops_utilisation"] == pytest.approx(0.4)
    unknown = summarise_steps([step | {"model_flops_utilisation": 0.5}, step | {"model_flops_utilisation": None}], 0)
    assert unknown["model_flops_utilisation"] is None
