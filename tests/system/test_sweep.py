"""A sweep through the whole service: two stages, a killed driver, a candidate that lags behind, the winner's job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.spec.event import Event
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import REPORT_PAGE_FILE, SWEEP_FILE, Trial
from tests.conftest import write_rows
from tests.system.conftest import System

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def sweep_document(job_document: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Six trials of one worker each; only sums count, so the mix of rhymes alone lags behind."""
    rhymes = [{"prompt": f"A rhyme on {n}?", "completion": f"Oh {n}, oh {n}, it is {n} again."} for n in range(80)]
    [sums] = job_document["data"]["sources"]
    other = {"name": "rhymes", "category": "general", "uri": f"file://{write_rows(tmp_path / 'rhymes.jsonl', rhymes)}"}
    job_document["data"] |= {"sources": [sums, sums | other], "dedup": None}
    job_document["parallel"] = {"num_workers": 1, "accelerator": "cpu"}
    job_document["train"]["checkpoint_every_steps"] = 10
    return {
        "name": "mixes",
        "base": job_document,
        "stages": [
            {"name": "small", "max_steps": 60, "candidates": 3, "baseline_seeds": 2, "beam_width": 1},
            {"name": "large", "max_steps": 3, "baseline_seeds": 2, "changes": {"train.tuning": "frozen_moe"}},
        ],
        "objective": {"metrics": [{"name": "held_out_loss.math"}]},
        "early_stop": {"reduction": 3, "first_rung": 0.25},
    }


def test_a_sweep_narrows_down_and_a_killed_driver_runs_no_trial_twice(
    system: System, sweep_document: dict[str, Any]
) -> None:
    sweep = system.client.sweeps.create(SweepSpec.model_validate(sweep_document))
    run = Path(sweep.run_url)
    corpora = set(run.parent.glob("prepared/corpus-*"))
    first = next(event for event in sweep.stream_events() if event.type == "trial.ended")
    before = {path: path.stat().st_mtime_ns for path in run.glob("trials/*/trial.json")}
    assert run / "trials" / str(first.data["trial"]) / "trial.json" in before
    [driver] = system.drivers(sweep.run_url)
    driver.kill()
    assert sweep.wait(timeout_s=700).attempt == 2
    results = sweep.results()
    assert [trial.status for trial in results.trials if trial.status not in ("succeeded", "stopped")] == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for trial in results.trials:
        _assert_no_step_was_lost_or_left_out(run, trial)
    small, large = results.stages
    assert (small.num_trials, small.status, large.status) == (4, "finished", "finished")
    rhymes = next(one for one in results.candidates if one.stage == "small" and (one.mixture or {}).get("general") == 1)
    assert rhymes.rank == max(one.rank or 0 for one in results.candidates if one.stage == "small")
    assert {one.stage for one in results.candidates if one.is_promoted} == {"small"}
    assert json.loads((run / SWEEP_FILE).read_text())["best"] == results.best
    assert results.verdict[0] in (run / REPORT_PAGE_FILE).read_text().replace("&#x27;", "'")
    assert list(run.parent.glob("prepared/corpus-*/tokenised"))
    assert len(set(run.parent.glob("prepared/corpus-*")) - corpora) <= 1, "tokenised once, mixed for each trial"
    packed = set(run.parent.glob("prepared/packed-*"))
    assert len(packed) >= len({str(one.mixture) for one in results.candidates}) == 3
    assert not list(run.glob("trials/*/checkpoints")), (
        "an ended trial keeps what was measured, not what it resumed from"
    )
    best = sweep.best()
    assert best.job.data.mixture is None or sum(share.share for share in best.job.data.mixture.values()) > 0
    assert best.job.model.base == SweepSpec.model_validate(sweep_document).base.model.base


def _assert_no_step_was_lost_or_left_out(run: Path, trial: Trial) -> None:
    lines = [
        line for path in sorted(run.glob(f"trials/{trial.id}/events/*/*")) for line in path.read_text().splitlines()
    ]
    events = [Event.model_validate_json(line) for line in lines]
    steps = {event.data["step"] for event in events if event.type == "train.step"}
    assert steps >= set(range(1, trial.steps + 1)), trial.id
    assert trial.status == "stopped" or len(steps) == trial.steps
    evaluated = {event.data["when"] for event in events if event.type == "eval.held_out"}
    assert "before" not in evaluated
    assert ("after" in evaluated) == (trial.status == "succeeded"), trial.id
