"""The freeze advisor: its rules on numbers, and the jobs that it posts, finds again and cancels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.cli import app
from service.client.client import Client
from service.client.freeze_advice import (
    ALL,
    MODES,
    FreezeAdvice,
    TuningResult,
    advise,
    advise_freeze,
    comparison_specs,
    read_result,
)
from service.errors import InvalidSpecError
from service.reconcile import Reconciler
from service.spec.event import REPORT_FILE
from service.spec.job import JobSpec
from service.spec.resources import Job, StepMetrics
from tests.service.recording_backend import RecordingBackend

BEFORE = {"code": 4.0, "math": 3.0, ALL: 3.5}


def result(tuning: str, gains: dict[str, float], step_s: float = 1.0) -> TuningResult:
    return TuningResult.model_validate(
        {
            "tuning": tuning,
            "job_id": f"job-{tuning}",
            "steps": 50,
            "num_workers": 2,
            "num_trained_params": 10,
            "peak_memory_bytes": 1000 * step_s,
            "step_s": step_s,
            "tokens_per_s": 100 / step_s,
            "before": BEFORE,
            "after": {category: BEFORE[category] - gain for category, gain in gains.items()},
        }
    )


FULL = result("full", {"code": 1.0, "math": 0.5, ALL: 0.8})


@pytest.mark.parametrize(
    ("gains", "verdict", "reason"),
    [
        ({"code": 0.9, "math": 0.46, ALL: 0.721}, "enough", "90% of full tuning's gain, no two categories in another"),
        ({"code": 0.9, "math": 0.46, ALL: 0.71}, "direction", "89% of full tuning's gain"),
        ({"code": 0.7, "math": 0.72, ALL: 0.76}, "direction", "the order by gain of code and math turned round"),
        ({"code": 0.7, "math": 0.709, ALL: 0.76}, "enough", "95%"),
        ({"code": 0.5, "math": 0.2, ALL: 0.401}, "direction", "50%"),
        ({"code": 0.3, "math": 0.2, ALL: 0.39}, "too little", "a direction needs 50%"),
        ({"code": -0.1, "math": 0.0, ALL: -0.05}, "too little", "-6% of full tuning's gain"),
    ],
)
def test_a_verdict_follows_from_the_share_of_the_gain_and_the_order_of_categories(
    gains: dict[str, float], verdict: str, reason: str
) -> None:
    other = advise([FULL, result("frozen_moe", gains, step_s=0.6)]).modes[1]
    assert other.verdict == verdict
    assert reason in other.reason
    assert "at 0.60 of the time a step and 0.60 of the memory" in other.reason


def test_the_cheapest_mode_that_is_enough_is_recommended() -> None:
    enough = {"code": 1.0, "math": 0.5, ALL: 0.8}
    frozen, routers = result("frozen_moe", enough, step_s=0.7), result("router_only", enough, step_s=0.6)
    assert advise([FULL, frozen, routers]).recommended == "router_only"
    slower = result("router_only", enough, step_s=1.1)
    assert advise([FULL, slower]).recommended == "full", "enough, but no faster"
    assert advise([FULL, frozen, result("router_only", BEFORE | {ALL: 0.1}, step_s=0.5)]).recommended == "frozen_moe"


def test_shares_and_costs_are_told_where_there_is_a_gain() -> None:
    advice = advise([FULL, result("router_only", {"code": 0.5, "math": -0.1, ALL: 0.2}, step_s=0.8)])
    full, routers = advice.modes
    assert (full.verdict, full.share_of_gain) == ("reference", 1.0)
    assert routers.share_of_gain == pytest.approx(0.25)
    assert routers.shares_by_category == pytest.approx({"code": 0.5, "math": -0.2})
    assert routers.worker_seconds_per_nat == pytest.approx(50 * 0.8 * 2 / 0.2)
    assert advise([FULL, result("router_only", dict.fromkeys(BEFORE, 0.0))]).modes[1].worker_seconds_per_nat is None


def test_nothing_is_concluded_when_full_tuning_hardly_gains() -> None:
    full = result("full", {"code": 0.05, "math": 0.01, ALL: 0.034})
    advice = advise([full, result("frozen_moe", {"code": 0.05, "math": 0.01, ALL: 0.034}, step_s=0.5)])
    assert [one.verdict for one in advice.modes] == ["undecided", "undecided"]
    assert advice.recommended == "full"
    assert "1.0% only" in advice.reason
    assert advice.modes[1].shares_by_category == {"code": pytest.approx(1.0), "math": None}


def test_jobs_differ_in_what_they_train_only(spec: JobSpec) -> None:
    jobs = comparison_specs(spec, 7)
    assert [job.name for job in jobs] == ["small-full", "small-frozen-moe", "small-router-only"]
    assert [job.train.tuning for job in jobs] == list(MODES)
    for job in jobs:
        assert JobSpec.model_validate(job.model_dump(mode="json")) == job
        assert (job.data, job.model, job.parallel, job.seed) == (spec.data, spec.model, spec.parallel, spec.seed)
        assert (job.train.max_steps, job.train.proofs, job.evaluate.prompts) == (7, True, ())
    long = comparison_specs(spec.model_copy(update={"name": "n" * 40}), 7, ["router_only"])
    assert [job.name for job in long] == ["n" * 35 + "-full", "n" * 28 + "-router-only"]
    with pytest.raises(InvalidSpecError, match="'lora' is no mode of tuning"):
        comparison_specs(spec, 7, ["lora"])


def report_of(spec: JobSpec) -> dict[str, Any]:
    """As much of a report as is read: the mode's own loss and memory."""
    number = MODES.index(spec.train.tuning)
    return {
        "job_id": "a-job",
        "data": {
            "held_out": [
                {"category": "code", "trained_tokens": 300},
                {"category": "math", "trained_tokens": 100},
            ]
        },
        "model": {"num_trained_params": 1000 >> number},
        "train": {"steps": 5, "peak_memory_bytes": 10**9},
        "held_out": {"before": {"code": 4.0, "math": 2.0}, "after": {"code": 3.0 + number / 10, "math": 1.0}},
    }


def step(number: int, step_s: float) -> StepMetrics:
    return StepMetrics(step=number, data={"step_s": step_s, "tokens_per_s": 10 / step_s})


def test_the_first_steps_are_not_timed_and_categories_weigh_by_their_tokens(spec: JobSpec) -> None:
    steps = [step(number, 100.0) for number in (1, 2, 3)] + [step(4, 1.0), step(5, 3.0), step(6, 2.0)]
    read = read_result(comparison_specs(spec, 6)[0], report_of(spec), steps)
    assert (read.tuning, read.step_s, read.tokens_per_s) == ("full", 2.0, 5.0)
    assert read.before[ALL] == pytest.approx((300 * 4 + 100 * 2) / 400)
    assert read.gains[ALL] == pytest.approx(1.0)
    with pytest.raises(InvalidSpecError, match=r"train\.epochs: the data gives 3 steps only"):
        read_result(spec, report_of(spec), steps[:3])
    with pytest.raises(InvalidSpecError, match="no conversation was held out"):
        read_result(spec, report_of(spec) | {"held_out": {"before": {}, "after": {}}}, steps)


class Cluster:
    """Plays the driver of each job that is looked at: five steps, a report, the end."""

    def __init__(self, reconciler: Reconciler, backend: RecordingBackend) -> None:
        self._reconciler, self._backend = reconciler, backend
        self.finished: list[str] = []

    def finish(self, job: Job) -> None:
        if job.is_terminal:
            return
        self._reconciler.reconcile()
        self._reconciler.reconcile()
        run = RunDirectory(job.run_url)
        with EventWriter(run, "driver", attempt=1) as events:
            for number in range(1, 6):
                events.emit("train.step", stage="train", step=number, step_s=0.5, tokens_per_s=20.0)
            events.emit("job.finished", report=REPORT_FILE)
        run.write_json(REPORT_FILE, report_of(JobSpec.model_validate(job.spec)))
        self._backend.states[f"{job.id}-a1"] = ("succeeded", "")
        self._reconciler.reconcile()
        self.finished.append(job.name)


@pytest.fixture
def cluster(reconciler: Reconciler, backend: RecordingBackend) -> Cluster:
    return Cluster(reconciler, backend)


def test_a_comparison_posts_one_job_after_the_other_and_finds_them_again(
    client: Client, spec: JobSpec, cluster: Cluster
) -> None:
    advice = advise_freeze(client, spec, steps=5, on_update=cluster.finish)
    assert cluster.finished == ["small-full", "small-frozen-moe", "small-router-only"]
    assert [one.share_of_gain for one in advice.modes] == pytest.approx([1.0, 0.925, 0.85])
    assert [one.result.num_trained_params for one in advice.modes] == [1000, 500, 250]
    assert advise_freeze(client, spec, steps=5) == advice, "nothing is run twice"
    assert len(client.jobs.list().data) == 3
    with pytest.raises(InvalidSpecError, match="more than 3 steps"):
        advise_freeze(client, spec, steps=3)


def test_an_interrupt_cancels_the_running_job_and_the_next_call_goes_on(
    client: Client, spec: JobSpec, cluster: Cluster
) -> None:
    def interrupt_the_second(job: Job) -> None:
        if job.name == "small-frozen-moe":
            raise KeyboardInterrupt
        cluster.finish(job)

    with pytest.raises(KeyboardInterrupt):
        advise_freeze(client, spec, steps=5, modes=["frozen_moe"], on_update=interrupt_the_second)
    statuses = {job.name: job.status for job in client.jobs.list().data}
    assert statuses == {"small-full": "succeeded", "small-frozen-moe": "cancelled"}
    advise_freeze(client, spec, steps=5, modes=["frozen_moe"], on_update=cluster.finish)
    assert cluster.finished == ["small-full", "small-frozen-moe"]
    assert len(client.jobs.list().data) == 3


def test_the_command_prints_what_the_client_returns(
    client: Client, url: str, key: str, job_document: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job_document))
    spec = JobSpec.model_validate(job_document)
    advice = advise_freeze(client, spec, steps=5, on_update=cluster.finish)
    access = ("--steps", "5", "--url", url, "--api-key", key)
    told = CliRunner().invoke(app, ["advise", "freeze", str(tmp_path / "job.json"), *access, "--json"])
    assert told.exit_code == 0, told.output
    assert FreezeAdvice.model_validate_json(told.stdout) == advice
    shown = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["advise", "freeze", str(tmp_path / "job.json"), *access])
    assert shown.exit_code == 0, shown.output
    assert "frozen_moe: enough for ablations: 92% of full tuning's gain" in shown.stdout
    assert "For ablations over data mixes: full; no other mode is both enough and faster a step" in shown.stdout
    wrong = CliRunner().invoke(app, ["advise", "freeze", str(tmp_path / "job.json"), *access, "--modes", "lora"])
    assert (wrong.exit_code, "is no mode of tuning" in wrong.output) == (1, True)
