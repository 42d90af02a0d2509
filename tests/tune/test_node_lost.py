"""A sweep goes on when the node that its trials lie on dies, while they start and while they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.report import read_events
from ray_jobs.run_directory import RunDirectory
from service.spec.sweep_results import SWEEP_FILE, SweepResults
from tests.conftest import drive_alone, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(640)]


def test_no_trial_is_lost_or_run_twice_when_nodes_die(job_document: dict[str, Any], tmp_path: Path) -> None:
    rhymes = [{"prompt": f"A rhyme on {n}?", "completion": f"Oh {n}, oh {n}, it is {n} again."} for n in range(40)]
    [sums] = job_document["data"]["sources"]
    other = {"name": "rhymes", "category": "general", "uri": f"file://{write_rows(tmp_path / 'rhymes.jsonl', rhymes)}"}
    job_document["data"] |= {"sources": [sums, sums | other], "dedup": None}
    job_document["parallel"] = {"num_workers": 1, "accelerator": "cpu"}
    stages = [{"name": "small", "max_steps": 60, "candidates": 4, "baseline_seeds": 2}]
    sweep = {"name": "mixes", "base": job_document, "stages": stages}
    outcome = drive_alone("tests.tune.node_lost", tmp_path / "run", sweep, timeout_s=600)
    assert outcome["ended_before"], "the node died after a trial had ended"
    assert len(outcome["ended"]) == len(outcome["started"]) == 5 > len(outcome["ended_before"])
    assert outcome["ended"] | outcome["ended_before"] == outcome["ended"], "no trial that had ended ran again"
    results = SweepResults.model_validate(json.loads((tmp_path / "run" / SWEEP_FILE).read_text()))
    assert [(trial.status, trial.steps) for trial in results.trials] == [("succeeded", 60)] * 5
    starts = {trial.id: starts_of(trial.run_url) for trial in results.trials}
    attempts = [max(event.attempt for event in read_events(RunDirectory(trial.run_url))) for trial in results.trials]
    assert max(attempts) > 1, "the first node took a trial's own processes"
    assert max(len(steps) for steps in starts.values()) > 1, "the second a trial's workers"
    assert any(steps[-1] > 0 for steps in starts.values() if len(steps) > 1), "which went on from their checkpoint"


def starts_of(trial_url: str) -> list[Any]:
    """The step at each start of its workers."""
    return [event.data["start_step"] for event in read_events(RunDirectory(trial_url)) if event.type == "train.started"]
