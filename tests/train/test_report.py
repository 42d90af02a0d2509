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
        self.tell(second, attempt, "train.step", "train", step_s=2.0, tokens=100, **data, **balance)


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
    story.tell(15, 1, "train.started", "train", workers=WORKERS)
    story.tell(16, 1, "train.proofs", "train", step=0, proofs=[{"name": "data", "passed": True}])
    story.step(20, 1, 1, 4.0)
    story.step(22, 1, 2, 3.9)
    story.tell(50, 2, "stage.started", "prepare")
    story.finish(51, 2, "prepare", reused=True)
    story.tell(51, 2, "stage.started", "train")
    story.tell(60, 2, "train.started", "train", workers=WORKERS)
    story.step(62, 2, 2, 3.8)
    story.step(64, 2, 3, 3.7)
    story.finish(65, 2, "train", reused=False)
    story.tell(65, 2, "stage.started", "evaluate")
    story.finish(70, 2, "evaluate", reused=False)
    story.tell(70, 2, "stage.started", "export")
    story.tell(100, 2, "train.started", "train", workers=WORKERS)
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
    assert report["export"]["path"].endswith("exports/attempt-2-f")
    assert report["held_out"] == {"before": {"math": 4.0}, "after": {"math": 3.0}}
    assert report["samples"] == [{"prompt": "?", "before": "before", "after": "after"}]


def test_an_undisturbed_run_says_what_it_reused(run: RunDirectory, job_document: dict[str, Any]) -> None:
    story = Story(run)
    for second, stage in ((0, "prepare"), (1, "train"), (9, "evaluate"), (12, "export")):
        story.tell(second, 1, "stage.started", stage)
        if stage == "train":
            story.tell(2, 1, "train.started", "train", workers=WORKERS)
            story.step(4, 1, 1, 4.0)
        story.finish(second + 1.5, 1, stage, reused=stage == "prepare")
    stages = report_of(run, job_document)["stages"]
    assert [(stage["stage"], stage["duration_s"], stage["reused"]) for stage in stages] == [
        ("prepare", 1.5, True),
        ("train", 1.5, False),
        ("evaluate", 1.5, False),
        ("export", 1.5, False),
    ]
