"""What a trial trains: the base job, with a stage's model, a candidate's mix and the sweep's own settings."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import ray

from ray_jobs.ablate import _require_held_out
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.loop import HELD_OUT_FILE
from ray_jobs.tune import trial_process
from ray_jobs.tune.beam import PlannedTrial
from ray_jobs.tune.sweep import Sweep
from ray_jobs.tune.trial import TRIAL_FILE, TrialRun, trial_spec
from service.errors import EmptyDataError, WorkerLostError
from service.spec.event import SPEC_FILE, Event
from service.spec.sweep import MetricSpec, StageSpec, SweepSpec
from service.spec.sweep_results import Trial


@pytest.fixture
def spec(job_document: dict[str, Any]) -> SweepSpec:
    [source] = job_document["data"]["sources"]
    job_document["data"]["sources"] = [source, source | {"name": "rhymes", "category": "general"}]
    job_document["data"]["mixture"] = {"math": {"share": 1, "max_epochs": 3}, "general": 1}
    job_document["evaluate"]["tasks"] = [
        {"kind": "gsm8k", "uri": "file:///gsm8k.jsonl"},
        {"kind": "humaneval", "uri": "file:///humaneval.jsonl"},
    ]
    job_document["evaluate"]["every_steps"] = 2
    job_document["seed"] = 7
    return SweepSpec.model_validate(
        {
            "name": "mixes",
            "base": job_document,
            "axes": {"fields": [{"kind": "choice", "path": "train.learning_rate", "values": [1e-3, 2e-3]}]},
            "stages": [
                {"name": "small", "max_steps": 9, "changes": {"train.tuning": "frozen_moe"}},
                {"name": "large", "max_steps": 90},
            ],
            "objective": {"metrics": [{"name": "held_out_loss"}, {"name": "gsm8k.exact_match"}]},
            "early_stop": {"reduction": 3, "first_rung": 1 / 9},
        }
    )


def planned(**fields: Any) -> PlannedTrial:
    values: dict[str, Any] = {
        "id": "small-r0-c0-s1",
        "candidate": "small-r0-c0",
        "stage": "small",
        "seed": 3,
        "mixture": {"general": 0.25, "math": 0.75},
        "fields": {"train.learning_rate": 2e-3},
        "left_out": None,
    }
    return PlannedTrial(**values | fields)


def test_a_trial_is_the_base_job_with_its_mix_and_its_stage(spec: SweepSpec) -> None:
    job = trial_spec(spec, planned())
    assert job.data.mixture is not None
    assert {name: share.share for name, share in job.data.mixture.items()} == {"general": 0.25, "math": 0.75}
    assert job.data.mixture["math"].max_epochs == 3, "the base mix's limits stay"
    assert (job.train.learning_rate, job.train.max_steps, job.train.tuning) == (2e-3, 9, "frozen_moe")
    assert (job.seed, job.data.seed) == (3, 7), "a seed changes no held-out row"
    assert [task.label for task in job.evaluate.tasks] == ["gsm8k"], "only what decides is asked"
    assert job.evaluate.prompts == ()
    assert job.evaluate.every_steps is None


def test_trials_share_all_that_the_mix_does_not_change(spec: SweepSpec) -> None:
    one, other = trial_spec(spec, planned()), trial_spec(spec, planned(seed=4, mixture={"general": 0.5, "math": 0.5}))
    assert one.data.model_copy(update={"mixture": None}) == other.data.model_copy(update={"mixture": None})


def test_a_left_out_source_stays_in_the_data(spec: SweepSpec) -> None:
    job = trial_spec(spec, planned(left_out="sums", mixture={"general": 1.0, "math": 0.0}))
    assert job.data.leave_out == ("sums",)
    assert [source.name for source in job.data.sources] == ["sums", "rhymes"]


def test_rungs_are_of_the_trials_own_stage(spec: SweepSpec, tmp_path: Any) -> None:
    run = RunDirectory(str(tmp_path))
    assert TrialRun(run, spec, planned()).rungs == (1, 3)
    assert TrialRun(run, spec, planned(stage="large")).rungs == (10, 30)
    patient = spec.model_copy(update={"early_stop": None})
    assert TrialRun(run, patient, planned()).rungs == ()


def test_a_budget_of_tokens_gives_as_many_to_steps_of_any_size(spec: SweepSpec, tmp_path: Any) -> None:
    stage = StageSpec(name="small", max_tokens=64 * 2 * 9)
    spec = spec.model_copy(update={"stages": (stage,)})
    for rows, steps, rungs in ((2, 9, (1, 3)), (6, 3, (1,))):
        trial = planned(fields={"train.global_batch_rows": rows})
        assert trial_spec(spec, trial).train.max_steps == steps
        assert TrialRun(RunDirectory(str(tmp_path)), spec, trial).rungs == rungs


def test_trials_whose_steps_differ_are_compared_at_the_same_tokens(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    document = spec.model_dump(mode="json") | {"stages": [{"name": "small", "max_tokens": 64 * 2 * 9}]}
    document["axes"] = {"fields": [{"kind": "choice", "path": "train.global_batch_rows", "values": [2, 4]}]}
    document["early_stop"] = {"reduction": 2, "first_rung": 0.5}
    spec = SweepSpec.model_validate(document)
    sweep = Sweep(spec, RunDirectory(str(tmp_path)), {"general": 0.5, "math": 0.5}, 1.0, lambda _, **data: None)
    at_rows: dict[Any, TrialRun] = {}
    while (trial := sweep.next_trial()) is not None:
        at_rows.setdefault(trial.planned.fields.get("train.global_batch_rows"), trial)
    assert (at_rows[2].rungs, at_rows[4].rungs) == ((5,), (3,))
    assert not sweep.is_behind(at_rows[2].planned, 5, 2.0)
    assert sweep.is_behind(at_rows[4].planned, 3, 1.0), "half of the way, as the other is"


def test_values_that_make_no_job_together_fail_their_trial_and_not_the_sweep(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr("service.spec.sweep._MOST_COMBINATIONS", 0)
    document = spec.model_dump(mode="json") | {"max_trial_failures": 9}
    document["base"]["train"]["global_batch_rows"] = 4
    document["axes"] = {
        "fields": [
            {"kind": "choice", "path": "train.global_batch_rows", "values": [2, 4]},
            {"kind": "choice", "path": "train.micro_batch_rows", "values": [1, 2]},
        ]
    }
    run, told = RunDirectory(str(tmp_path)), list[dict[str, Any]]()
    sweep = Sweep(
        SweepSpec.model_validate(document), run, {"general": 0.5, "math": 0.5}, 1.0, lambda _, **data: told.append(data)
    )
    started = []
    while (trial := sweep.next_trial()) is not None:
        started.append(trial.planned)
    failed = [trial for trial in sweep.results().trials if trial.status == "failed"]
    impossible = [one for one in sweep.results().candidates if list(one.fields.values()) == [2, 2]]
    assert impossible
    assert [trial.candidate for trial in failed] == [one.id for one in impossible]
    assert "makes no job: is no multiple of" in failed[0].reason
    assert not {trial.candidate for trial in failed} & {one.candidate for one in started}


def test_a_mixs_own_fault_is_its_end_and_the_clusters_is_not(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = RunDirectory(str(tmp_path))
    sweep.write_json(SPEC_FILE, spec.model_dump(mode="json"))
    config = {"run_url": sweep.url, "planned": planned()._asdict()}

    def fail(error: Exception) -> Any:
        def run(self: TrialRun) -> None:
            raise error

        monkeypatch.setattr(TrialRun, "run", run)
        return trial_process._train._function(config)

    with pytest.raises(WorkerLostError):
        fail(WorkerLostError("a node is gone"))
    trial = TrialRun(sweep, spec, planned())
    assert trial.ended() is None, "it will go on"
    fail(EmptyDataError("nothing is left", "data.mixture.math"))
    ended = trial.ended()
    assert ended is not None
    assert (ended.status, ended.reason, ended.steps) == ("failed", "data.mixture.math: nothing is left", 0)


def test_the_process_that_only_waits_loads_no_pytorch() -> None:
    check = "import sys, ray_jobs.tune.trial_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_trial_whose_benchmark_failed_cannot_be_compared(spec: SweepSpec, tmp_path: Any) -> None:
    sweep = RunDirectory(str(tmp_path))
    trial = TrialRun(sweep, spec, planned())
    for when in ("step-1", "after"):
        trial.directory.write_json(HELD_OUT_FILE.format(when=when), {"step": 9, "loss": {"general": 2.0, "math": 1.0}})
    summary = {"task": "gsm8k", "metrics": {}, "reason": "no room"}
    trial.directory.write_json("evaluation/after/gsm8k.json", summary)
    assert trial.rungs_reached() == {}
    ended = trial.finish()
    assert (ended.status, ended.reason) == ("failed", "gsm8k.exact_match could not be measured; gsm8k: no room")
    trial.directory.write_json("evaluation/after/gsm8k.json", summary | {"metrics": {"exact_match": {"score": 0.5}}})
    assert trial.finish() == ended, "what it once said stays"
    (tmp_path / "trials" / trial.planned.id / TRIAL_FILE).unlink()
    assert trial.finish().metrics["gsm8k.exact_match"] == 0.5
    assert trial.finish().status == "succeeded"


def event(seconds: int, kind: Any, attempt: int, **data: Any) -> Event:
    return Event(
        time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds), type=kind, attempt=attempt, data=data
    )


def test_a_trials_cost_is_that_of_all_its_attempts_and_a_step_counts_once(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = TrialRun(RunDirectory(str(tmp_path)), spec, planned())
    events = [event(0, "train.started", 1, workers=[{}, {}])]
    events += [event(step, "train.step", 1, step=step, loss=5.0, tokens=9) for step in range(1, 6)]
    events += [event(100, "train.started", 2, workers=[{}, {}])]
    events += [event(98 + step, "train.step", 2, step=step, loss=4.0, tokens=10) for step in range(4, 10)]
    monkeypatch.setattr("ray_jobs.tune.trial.read_events", lambda _: events)
    for step in trial.rungs:
        losses = {"general": 2.0, "math": 1.0}
        trial.directory.write_json(HELD_OUT_FILE.format(when=f"step-{step}"), {"step": step, "loss": losses})
        summary = {"task": "gsm8k", "metrics": {"exact_match": {"score": 0.1 * step}}, "reason": None}
        trial.directory.write_json(f"evaluation/step-{step}/gsm8k.json", summary)
    failed = trial.end("failed", "no")
    assert failed.duration_s == 5 + 7, "the time between the attempts is nobody's"
    assert failed.worker_seconds == 2 * 12
    assert (failed.steps, failed.tokens) == (9, 3 * 9 + 6 * 10)
    assert failed.curve == [(step, 5.0 if step < 4 else 4.0) for step in range(1, 10)]
    (tmp_path / "trials" / failed.id / TRIAL_FILE).unlink()
    stopped = trial.end("stopped")
    assert (stopped.steps, stopped.tokens, list(stopped.rungs)) == (3, 27, [1, 3]), "it ended at its last rung"
    assert stopped.metrics["gsm8k.exact_match"] == pytest.approx(0.3)
    assert stopped.worker_seconds == failed.worker_seconds, "what its workers did beyond it was paid for all the same"


def test_a_long_curve_keeps_its_last_point(spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(step, "train.step", 1, step=step, loss=1 / step, tokens=1) for step in range(1, 1002)]
    monkeypatch.setattr("ray_jobs.tune.trial.read_events", lambda _: events)
    curve = TrialRun(RunDirectory(str(tmp_path)), spec, planned()).end("failed").curve
    assert 150 < len(curve) <= 200
    assert curve[-1] == (1001, 1 / 1001)
    assert {later[0] - earlier[0] for earlier, later in pairwise(curve)} == {6}


def test_a_resumed_sweep_compares_with_the_rungs_of_trials_that_have_ended(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0})

    def sweep() -> Sweep:
        mixture = {"general": 0.5, "math": 0.5}
        return Sweep(spec, RunDirectory(str(tmp_path)), mixture, 1.0, lambda _, **data: None)

    first, started = sweep(), list[TrialRun]()
    while (trial := first.next_trial()) is not None:
        started.append(trial)
    ahead, other = started[-2:]
    document = Trial(
        id=ahead.planned.id, candidate=ahead.planned.candidate, stage="small", seed=0, status="stopped", rungs={1: 4.0}
    )
    ahead.directory.write_json(TRIAL_FILE, document.model_dump(mode="json"))
    assert not first.is_behind(other.planned, 1, 3.0), "the first to come"
    resumed = sweep()
    assert resumed.is_behind(other.planned, 1, 3.0), "behind the one that had ended"
    again = list[str]()
    while (trial := resumed.next_trial()) is not None:
        again.append(trial.planned.id)
    assert again == [trial.planned.id for trial in started if trial is not ahead], "what has ended does not run again"


def test_as_many_trials_run_as_there_is_room_for(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(cpus: float, most: int | None = None) -> int:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus})
        limited = spec.model_copy(update={"max_concurrent_trials": most})
        run = RunDirectory(str(tmp_path / f"{cpus}-{most}"))
        sweep, count = Sweep(limited, run, {"general": 0.5, "math": 0.5}, 1.0, lambda _, **data: None), 0
        while sweep.next_trial() is not None:
            count += 1
        return count

    assert [started(cpus) for cpus in (1.0, 2.0, 5.0, 6.0)] == [1, 1, 2, 3], (
        "of two workers each; one waits in any case"
    )
    assert started(16.0, most=2) == 2


def test_a_trial_of_another_mix_is_not_taken_for_this_one(spec: SweepSpec, tmp_path: Any) -> None:
    sweep = RunDirectory(str(tmp_path))
    ended = TrialRun(sweep, spec, planned()).end("failed", "no")
    assert TrialRun(sweep, spec, planned()).ended() == ended
    other = planned(mixture={"general": 0.5, "math": 0.5})
    with pytest.raises(ValueError, match=r"small-r0-c0-s1 has run as .*0\.25.*another version"):
        TrialRun(sweep, spec, other).ended()


def test_what_no_held_out_conversation_can_measure_is_told_before_any_trial(spec: SweepSpec) -> None:
    _require_held_out(spec, {"held_out": [{"category": "math"}]})
    with pytest.raises(EmptyDataError, match="held_out_loss cannot be measured"):
        _require_held_out(spec, {"held_out": []})
    metrics = (MetricSpec(name="held_out_loss.general"),)
    spec = spec.model_copy(update={"objective": spec.objective.model_copy(update={"metrics": metrics})})
    with pytest.raises(EmptyDataError, match="no conversation of 'general'") as caught:
        _require_held_out(spec, {"held_out": [{"category": "math"}]})
    assert caught.value.field == "base.data.held_out_fraction"


def test_only_what_lags_behind_is_written_down_as_stopped(
    spec: SweepSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    told: list[dict[str, Any]] = []
    sweep = Sweep(
        spec, RunDirectory(str(tmp_path)), {"general": 0.5, "math": 0.5}, 1.0, lambda _, **data: told.append(data)
    )
    started: dict[str, TrialRun] = {}
    while (trial := sweep.next_trial()) is not None:
        started[trial.planned.candidate] = trial
    base, cut, behind = (started[f"small-r0-c{number}"] for number in range(3))
    assert not sweep.is_behind(base.planned, 1, 5.0)
    assert sweep.is_behind(behind.planned, 1, 1.0)
    assert not sweep.is_behind(behind.planned, 3, 9.0)
    assert not sweep.is_behind(base.planned, 3, -9.0), "the base mix never is"
    sweep.end(behind.planned.id, None)
    sweep.end(cut.planned.id, None)
    assert behind.ended() is not None
    assert cut.ended() is None, "the sweep ended around it, and may go on with it"
    assert (told[-1]["trials_ended"], told[-1]["trials_planned"]) == (1, told[0]["trials_planned"])
