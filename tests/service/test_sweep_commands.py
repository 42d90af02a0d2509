"""`sleddog sweep`, and how a sweep's file is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from rich.console import Console

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.client.client import Client
from service.client.spec_file import load_sweep
from service.client.sweep_view import SweepView, describe_sweep, mix_text, remaining_s
from service.errors import InvalidSpecError
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.spec.resources import Sweep
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import SWEEP_FILE, Candidate, SweepResults
from tests.service.recording_backend import RecordingBackend
from tests.service.test_cli import run

pytestmark = pytest.mark.usefixtures("apart")


@pytest.fixture
def access(url: str, key: str) -> tuple[str, ...]:
    return ("--url", url, "--api-key", key)


@pytest.fixture
def sweep_file(sweep_document: dict[str, Any], sweep_spec: SweepSpec, tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_document))
    return path


def finish(sweep: Sweep, results: SweepResults, backend: RecordingBackend, reconciler: Reconciler) -> None:
    """What a driver does, from its first trial to its last word."""
    reconciler.reconcile()
    reconciler.reconcile()
    (Path(sweep.run_url) / SWEEP_FILE).write_text(results.model_dump_json())
    with EventWriter(RunDirectory(sweep.run_url), "driver", attempt=1) as events:
        events.emit("sweep.progress", stage="target", round=0, trials_ended=6, trials_planned=6, best="target-1")
        events.emit("job.finished")
    backend.states[f"{sweep.id}-a1"] = ("succeeded", "")
    reconciler.reconcile()


def test_help_tells_of_every_command() -> None:
    text = run("sweep", "--help")[1]
    for name in ("run", "submit", "list", "show", "cancel", "beams", "trials", "promote"):
        assert name in text
        code, help_text = run("sweep", name, "--help")
        assert code == 0
        assert len(help_text) > 200


def test_a_sweep_is_submitted_listed_and_cancelled(sweep_file: Path, access: tuple[str, ...]) -> None:
    code, text = run("sweep", "submit", str(sweep_file), "--priority", "3", *access)
    assert code == 0
    sweep_id = text.strip()
    listed = run("sweep", "list", *access)[1]
    assert sweep_id in listed
    assert "number 1 in the queue" in listed
    assert sweep_id not in run("jobs", *access)[1]
    code, text = run("sweep", "show", sweep_id, *access)
    assert code == 1
    assert "is queued; results are there once it has begun its trials" in text
    assert run("sweep", "cancel", sweep_id, *access)[1].strip() == "cancelled"
    [shown] = json.loads(run("sweep", "list", "--json", *access)[1])["data"]
    assert (shown["status"], shown["priority"]) == ("cancelled", 3)


def test_a_finished_sweep_is_shown(
    client: Client,
    sweep_spec: SweepSpec,
    results: SweepResults,
    backend: RecordingBackend,
    reconciler: Reconciler,
    access: tuple[str, ...],
) -> None:
    sweep = client.sweeps.create(sweep_spec)
    finish(sweep, results, backend, reconciler)
    code, shown = run("sweep", "show", sweep.id, *access)
    assert code == 0
    for part in (
        "Stage proxy: 4 trials, one trial's noise",
        "▲ │1 │1    │25/75 │+3.0 ±1.0 │ +3.0 │",
        "✗ │2 │2    │0/100 │+2.0 ±1.0 │ +2.0 │",
        "mix: general/math",
        "proxy and target, 3 candidates: rank correlation +0.50, the same best one",
        "More math is better by 5.0 %.",
        f"Report  {sweep.run_url}/report.html",
    ):
        assert part in shown, shown
    assert shown.index("│1 │1 ") < shown.index("│2 │2 ") < shown.index("│3 │base")
    assert SweepResults.model_validate_json(run("sweep", "show", sweep.id, "--json", *access)[1]) == results
    beams = run("sweep", "beams", sweep.id, "--stage", "proxy", *access)[1]
    assert "│2 │2 " in beams
    assert "Stage target" not in beams
    assert "base" not in beams
    assert "base" in run("sweep", "beams", sweep.id, "--all", *access)[1]
    assert [found["id"] for found in json.loads(run("sweep", "beams", sweep.id, "--json", *access)[1])["data"]] == [
        "proxy-1",
        "proxy-2",
        "target-1",
    ]
    trials = run("sweep", "trials", sweep.id, "--status", "failed", *access)[1]
    assert "proxy-base-s1" in trials
    assert "proxy-1-s0" not in trials
    job = JobSpec.model_validate_json(run("sweep", "promote", sweep.id, *access)[1])
    assert job == sweep.best().job
    assert JobSpec.model_validate_json(run("sweep", "promote", sweep.id, "proxy-2", *access)[1]) != job
    job_id = run("sweep", "promote", sweep.id, "--submit", *access)[1].strip()
    assert JobSpec.model_validate(client.jobs.get(job_id).spec) == job


def test_run_follows_a_sweep_and_trains_the_best(
    sweep_file: Path,
    client: Client,
    results: SweepResults,
    backend: RecordingBackend,
    reconciler: Reconciler,
    access: tuple[str, ...],
) -> None:
    """The command line in a thread of its own; the test plays the cluster."""
    answers: list[tuple[int, str]] = []
    thread = Thread(
        target=lambda: answers.append(run("sweep", "run", str(sweep_file), "--train-best", "--json", *access))
    )
    thread.start()
    while not (sweeps := client.sweeps.list().data):
        thread.join(0.05)
    finish(sweeps[0], results, backend, reconciler)
    while not (jobs := client.jobs.list().data):
        thread.join(0.05)
    client.jobs.cancel(jobs[0].id)
    thread.join()
    [(code, text)] = answers
    assert code == 1, "the job was cancelled"
    assert JobSpec.model_validate(jobs[0].spec) == client.sweeps.best(sweeps[0].id).job
    assert f"Posted {sweep_file} as {sweeps[0].id}" in text
    assert f"Posted the job of target-1 as {jobs[0].id}" in text
    assert json.loads(text[text.index("{\n") : text.rindex("\n}") + 2])["best"] == "target-1"


def test_paths_are_taken_from_the_file_they_stand_in(sweep_document: dict[str, Any], tmp_path: Path) -> None:
    base = sweep_document["base"]
    base["data"]["sources"][0]["uri"] = "rows/*.jsonl"
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "base.yaml").write_text(yaml.safe_dump(base))
    sweep_document["stages"][0]["changes"] = {"data.sources.1.uri": "other.jsonl", "model": {"base": "checkpoint"}}
    sweep_document["axes"] = {"fields": [{"kind": "choice", "path": "data.sources.0.uri", "values": ["a", "s3://b"]}]}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_document | {"base": "jobs/base.yaml"}))
    spec = load_sweep(path)
    assert spec.base.data.sources[0].uri == f"file://{tmp_path}/jobs/rows/*.jsonl"  # type: ignore[union-attr]
    assert spec.stages[0].changes == {
        "data.sources.1.uri": f"{tmp_path}/other.jsonl",
        "model": {"base": f"{tmp_path}/checkpoint"},
    }
    assert spec.axes.fields[0].values == (f"{tmp_path}/a", "s3://b")  # type: ignore[union-attr]
    path.write_text(yaml.safe_dump(sweep_document))
    assert load_sweep(path).base.data.sources[0].uri == f"file://{tmp_path}/rows/*.jsonl"  # type: ignore[union-attr]
    sweep_document["stages"][0]["changes"] = "none"
    path.write_text(yaml.safe_dump(sweep_document))
    with pytest.raises(InvalidSpecError, match=r"^stages\.0\.changes"):
        load_sweep(path)
    path.write_text("base: [1]\n")
    with pytest.raises(InvalidSpecError, match="faults"):
        load_sweep(path)


def test_progress_is_one_line(client: Client, sweep_spec: SweepSpec, results: SweepResults) -> None:
    sweep: Sweep = client.sweeps.create(sweep_spec)
    assert describe_sweep(sweep) == "  number 1 in the queue"
    for fields, line in [
        ({"stage": "prepare"}, "  prepare"),
        ({"stage": "prepare", "task": "pack", "done": 1, "unit": "shards"}, "  prepare  pack: 1 shards"),
        (
            {"stage": "proxy", "round": 0, "trials_ended": 3, "trials_planned": 9},
            "  proxy  round 1  trials 3/9  ETA 1:00",
        ),
        (
            {"stage": "target", "trials_ended": 8, "trials_planned": 9, "best": "c", "best_score": 0.05},
            "  target  trials 8/9  best c +5.00%  ETA 0:10",
        ),
        ({"stage": "third", "trials_ended": 8, "trials_planned": 9}, "  third  trials 8/9"),
    ]:
        progress = sweep.progress.model_copy(update=fields)
        running = sweep.model_copy(update={"status": "running", "queue_position": None, "progress": progress})
        assert describe_sweep(running, results) == line
    running_trials = [trial.model_copy(update={"status": "running", "stage": "proxy"}) for trial in results.trials[:2]]
    busy = results.model_copy(update={"trials": [*results.trials, *running_trials]})
    progress = sweep.progress.model_copy(update={"stage": "proxy", "trials_ended": 3, "trials_planned": 9})
    assert remaining_s(progress, busy) == 30, "two trials at a time"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_live_view_shows_beams(
    client: Client, sweep_spec: SweepSpec, results: SweepResults, is_terminal: bool, tmp_path: Path
) -> None:
    sweep: Sweep = client.sweeps.create(sweep_spec)
    fields = {"stage": "proxy", "round": 1, "trials_ended": 3, "trials_planned": 9}
    progress = sweep.progress.model_copy(update=fields)
    running = sweep.model_copy(update={"status": "running", "queue_position": None, "progress": progress})
    with (tmp_path / "out").open("w+") as file:
        console = Console(file=file, force_terminal=is_terminal, width=150, height=40)
        with SweepView(console, lambda _: results) as view:
            view.update(running)
            view.update(running)
        file.seek(0)
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.read())
    assert "trials 3/9  ETA 1:00" in shown
    if is_terminal:
        assert "✔ proxy (2 rounds)" in shown
        assert "general 25% math 75%" in shown
    else:
        assert shown.count("\n") == 1, "a line comes again when something has changed"


def test_a_mixs_bar_is_as_long_as_all_bars() -> None:
    found = Candidate(id="c", stage="s", round=0, role="spread", mixture={"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert mix_text(found, ["a", "b", "c"]).plain == "███████▓▓▓▓▓▓▒▒▒▒▒▒▒ a 33% b 33% c 33%"
    without = found.model_copy(update={"mixture": None, "left_out": "x", "fields": {"train.learning_rate": 1e-3}})
    assert mix_text(without, []).plain == "all there is without x train.learning_rate=0.001"
