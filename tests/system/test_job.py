"""A job through the running service: its end, its faults, its cancellation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from moe.hf import load_checkpoint, read_config
from moe.model import HybridModel
from ray_jobs.train.checkpoint import read_manifest
from service.cli import app
from service.client.freeze_advice import advise_freeze
from service.errors import JobFailedError
from service.spec.job import JobSpec
from tests.conftest import write_rows
from tests.system.conftest import System

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def exported(system: System, job_id: str) -> dict[str, torch.Tensor]:
    directory = Path(system.client.jobs.report(job_id)["export"]["path"])
    return {key: tensor for path in directory.glob("*.safetensors") for key, tensor in load_file(path).items()}


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit by bit: fp32 on CPU with one thread a worker and gloo's fixed order of reduction leaves nothing to chance."""
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def steps_taken(system: System, job_id: str) -> list[int]:
    events = system.client.jobs.stream_events(job_id)
    return [event.data["step"] for event in events if event.type == "train.step"]  # type: ignore[misc]


def assert_resumed_from_the_last_checkpoint(system: System, job_id: str) -> None:
    """After one restart: no step is lost, none at or before the last checkpoint is repeated."""
    saved, starts, taken = [0], [], []
    for event in system.client.jobs.stream_events(job_id):
        if event.type == "checkpoint.saved":
            saved.append(event.data["step"])
        elif event.type == "train.started":
            starts.append((event.data["start_step"], saved[-1], len(taken)))
        elif event.type == "train.step":
            taken.append(event.data["step"])
    [first, (start_step, last_saved, num_taken)] = starts
    assert first == (0, 0, 0)
    assert last_saved > 0
    assert start_step - last_saved in (0, 20), "the last of those saved, or the one whose event had no time to come out"
    assert taken[:num_taken] == list(range(1, num_taken + 1))
    assert taken[num_taken:] == list(range(start_step + 1, taken[-1] + 1))
    assert taken[-1] == system.client.jobs.get(job_id).progress.total_steps


@pytest.fixture(scope="module")
def finished() -> dict[str, str]:
    """Ids of finished jobs, so that one undisturbed run serves several comparisons."""
    return {}


@pytest.fixture
def undisturbed(system: System, long_document: dict[str, Any], finished: dict[str, str]) -> str:
    if "undisturbed" not in finished:
        finished["undisturbed"] = system.run(JobSpec.model_validate(long_document))
    return finished["undisturbed"]


def test_a_job_runs_to_its_report(system: System, undisturbed: str) -> None:
    job, report = system.client.jobs.get(undisturbed), system.client.jobs.report(undisturbed)
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert [stage["stage"] for stage in report["stages"]] == ["prepare", "train", "evaluate", "export"]
    train = report["train"]
    assert train["steps"] == train["planned_steps"] == job.progress.total_steps
    assert (train["steps_taken_twice"], train["restarts"], train["epochs"]) == (0, 0, 2)
    assert sorted(steps_taken(system, undisturbed)) == list(range(1, train["steps"] + 1))
    rates = [rate for _, rate in train["learning_rate_curve"]]
    assert max(rates) == 1e-3 == rates[train["warmup_steps"] - 1]
    assert 0 < train["model_flops_utilisation"] < 1
    assert sum(train["phases"].values()) == pytest.approx(train["duration_s"])
    assert 0 < train["phases"]["other_s"] < train["phases"]["backward_s"]
    assert train["peak_memory_bytes"] > 100_000_000, "the interpreter and PyTorch alone"
    assert train["frozen_saving"] is None
    assert report["held_out"]["after"]["math"] < 0.7 * report["held_out"]["before"]["math"]
    assert_routing_was_watched(system, undisturbed)
    assert train["balance_loss_floor"] == pytest.approx(0.04)
    assert train["balance_loss"] == pytest.approx(sum(train["balance_loss_per_layer"]))
    assert [sample["prompt"] for sample in report["samples"]] == ["What is 3 plus 1?"]
    assert report["export"]["verified"]
    assert "RayTrainWorker" in system.client.jobs.logs(undisturbed)


def assert_routing_was_watched(system: System, job_id: str) -> None:
    """Every held-out token is counted, in every layer; the base model drifts from itself, as training goes on."""
    report, run_url = system.client.jobs.report(job_id), system.client.jobs.get(job_id).run_url
    events = [event.data for event in system.client.jobs.stream_events(job_id) if event.type == "eval.routing"]
    before, after = report["routing"]
    assert events == [before, after]
    [held_out] = report["data"]["held_out"]
    figures = json.loads((Path(run_url) / after["path"]).read_text())["categories"]["math"]
    counts = figures["copies_per_layer_and_expert"]
    assert [sum(copies) for copies in counts] == [2 * held_out["tokens"]] * 4
    assert before["layers"]["load_drift"] is None
    assert len(after["layers"]["load_drift"]) == 4
    assert all(0 < drift < 1 for drift in after["layers"]["load_drift"])
    assert all(0 < same < 1 for same in after["layers"]["same_experts"])


def test_a_skipped_row_is_counted_and_listed(system: System, undisturbed: str) -> None:
    [event] = [event for event in system.client.jobs.stream_events(undisturbed) if event.type == "rows.skipped"]
    [row] = event.data["rows"]  # type: ignore[misc]
    assert event.data["count"] == 1
    assert (row["source"], row["row"], row["reason"]) == ("sums", 3, "no field 'completion'")  # type: ignore[call-overload, index]
    [source] = system.client.jobs.report(undisturbed)["data"]["sources"]
    assert (source["rows_read"], source["rows_rejected"], source["rows_kept"]) == (201, 1, 200)


def test_saved_checkpoints_lie_where_their_events_say(system: System, undisturbed: str) -> None:
    saved = [event.data for event in system.client.jobs.stream_events(undisturbed) if event.type == "checkpoint.saved"]
    last_step = system.client.jobs.get(undisturbed).progress.total_steps
    assert [data["step"] for data in saved] == [*range(20, last_step or 0, 20), last_step]
    checkpoints = Path(system.client.jobs.get(undisturbed).run_url) / "checkpoints"
    for data in saved[-2:]:
        manifest = read_manifest(f"{checkpoints}/{data['path']}")
        assert manifest is not None
        assert manifest.state.step == manifest.state.updates == data["step"]


def test_the_command_line_shows_what_the_service_knows(
    system: System, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEDDOG_URL", system.url)
    monkeypatch.setenv("SLEDDOG_API_KEY", system.api_key)
    monkeypatch.setenv("COLUMNS", "200")

    def output_of(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert undisturbed in output_of("jobs")
    assert json.loads(output_of("jobs", "--json", "--limit", "1000"))["data"]
    assert output_of("logs", undisturbed, "--tail", "3").count("\n") == 3
    assert json.loads(output_of("report", undisturbed, "--json")) == system.client.jobs.report(undisturbed)
    report = output_of("report", undisturbed)
    for part in (
        "What came in",
        "products.jsonl row 3: no field 'completion'",
        "Packing",
        "MFU ",
        "Proofs  ",
        "Held-out loss",
        "Routing of held-out tokens",
        "Checkpoint",
    ):
        assert part in report
    assert "succeeded" in output_of("watch", undisturbed)
    assert CliRunner().invoke(app, ["cancel", undisturbed]).exit_code == 1


def run_by_example(system: System, command: list[str], document: dict[str, Any], directory: Path) -> str:
    """Run a job by one of the examples; returns its id."""
    spec = directory / "spec.json"
    spec.write_text(json.dumps(document))
    environment = os.environ | {"SLEDDOG_URL": system.url, "SLEDDOG_API_KEY": system.api_key}
    done = subprocess.run(
        [*command, str(spec)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    [job] = system.client.jobs.list(limit=1).data
    assert job.run_url in done.stdout, "the report names the checkpoint"
    return job.id


def test_the_export_is_a_whole_checkpoint_and_starts_another_job_by_the_python_example(
    system: System, undisturbed: str, long_document: dict[str, Any], tmp_path: Path
) -> None:
    directory = Path(system.client.jobs.report(undisturbed)["export"]["path"])
    config = read_config(directory)
    model = HybridModel(config)
    load_checkpoint(model, directory)
    assert {"tokenizer.json", "generation_config.json", "config.json"} <= {path.name for path in directory.iterdir()}
    long_document["model"] = {"base": str(directory)}
    long_document["train"] |= {"max_steps": 2, "tuning": "frozen_moe"}
    again = run_by_example(system, [sys.executable, "examples/quickstart.py"], long_document, tmp_path)
    report, first = system.client.jobs.report(again), system.client.jobs.report(undisturbed)
    assert report["train"]["frozen_saving"]["memory_bytes"] > 0
    assert 0 < report["train"]["frozen_saving"]["flops_fraction"] < 1 / 3, "only products of weights' gradients"
    assert report["held_out"]["before"]["math"] == pytest.approx(first["held_out"]["after"]["math"], rel=1e-6)
    before, after = exported(system, undisturbed), exported(system, again)
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]) == (".block_sparse_moe." in key), key


@pytest.mark.timeout(600)  # two jobs
def test_the_freeze_advisor_reads_what_its_jobs_report(system: System, long_document: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(long_document)
    full, routers = advise_freeze(system.client, spec, steps=4, modes=["router_only"]).modes
    assert full.result.before == pytest.approx(routers.result.before), "both start from the same weights"
    assert (full.verdict, routers.result.steps) == ("reference", 4)
    assert 0 < routers.result.num_trained_params < 0.01 * full.result.num_trained_params
    assert full.gain > routers.gain
    report = system.client.jobs.report(routers.result.job_id)
    assert report["stages"][0]["reused"], "data is prepared once"
    assert all(proof["passed"] for start in report["proofs"] for proof in start["proofs"])


def test_a_failing_storage_a_killed_worker_and_a_damaged_checkpoint_change_no_weight(
    system: System, undisturbed: str, long_document: dict[str, Any]
) -> None:
    job = system.client.jobs.create(JobSpec.model_validate(long_document))
    checkpoints = Path(job.run_url) / "checkpoints"
    system.await_event(job.id, lambda event: event.type == "checkpoint.saved")
    with no_room_at(checkpoints):
        system.await_event(job.id, lambda event: event.data.get("kind") == "checkpoint_delayed")
    system.await_event(job.id, lambda event: event.type == "checkpoint.saved" and event.data["step"] > 20)  # type: ignore[operator]
    [_, worker] = system.worker_processes(job.id)
    worker.kill()
    worker.wait()
    damaged = max(checkpoints.glob("attempt-1/*/checkpoint.json"), key=lambda path: path.parent.name).parent
    damage(max(damaged.glob("*.safetensors"), key=lambda path: path.stat().st_size))
    system.client.jobs.wait(job.id, timeout_s=200)
    train = system.client.jobs.report(job.id)["train"]
    assert train["restarts"] == 1
    kinds = [warning["kind"] for warning in train["warnings"]]
    assert {"checkpoint_delayed", "workers_restarted", "checkpoint_damaged"} <= set(kinds)
    starts = [event for event in system.client.jobs.stream_events(job.id) if event.type == "train.started"]
    assert 0 < starts[1].data["start_step"] < int(damaged.name.partition("-")[0])  # type: ignore[operator]
    assert_same_weights(exported(system, job.id), exported(system, undisturbed))


@contextmanager
def no_room_at(directory: Path) -> Iterator[None]:
    """Every write below it fails for a while, as on a storage that is full or away; what lies there stays."""
    away = directory.with_suffix(".away")
    directory.rename(away)
    directory.write_text("in the way")
    yield
    directory.unlink()
    away.rename(directory)


def damage(path: Path) -> None:
    """Flip one bit in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_killed_driver_is_followed_by_another_attempt(
    system: System, undisturbed: str, long_document: dict[str, Any]
) -> None:
    long_document["train"]["proofs"] = False  # the rows are counted at the restart all the same
    job = system.client.jobs.create(JobSpec.model_validate(long_document))
    system.await_event(job.id, lambda event: event.type == "train.step" and event.data["step"] == 33)
    [driver] = system.drivers(job.run_url)
    driver.kill()
    done = system.client.jobs.wait(job.id, timeout_s=200)
    assert done.attempt == 2
    assert_resumed_from_the_last_checkpoint(system, job.id)
    assert_same_weights(exported(system, job.id), exported(system, undisturbed))


@pytest.mark.timeout(600)  # two jobs, one of them started twice
def test_a_job_gives_way_to_a_more_urgent_one_and_goes_on_from_its_checkpoint(
    system: System, undisturbed: str, long_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.schedule.decide.MIN_RUN_S", 0.0)
    long_document["train"]["proofs"] = False
    job = system.client.jobs.create(JobSpec.model_validate(long_document))
    workers = system.worker_processes(job.id)
    system.await_event(job.id, lambda event: event.type == "train.step" and event.data["step"] == 33)
    urgent_document = long_document | {"train": long_document["train"] | {"max_steps": 1}}
    urgent = system.client.jobs.create(JobSpec.model_validate(urgent_document), priority=5)
    system.client.jobs.wait(urgent.id, timeout_s=150)
    assert not any(worker.is_running() for worker in workers), "they ended, to make room"
    done = system.client.jobs.wait(job.id, timeout_s=200)
    assert done.attempt == 2
    moves = [event.data["new"] for event in system.client.jobs.stream_events(job.id) if event.type == "job.status"]
    to_running = ["queued", "submitting", "running"]
    assert moves == [*to_running, "preempting", *to_running, "succeeded"]
    assert_resumed_from_the_last_checkpoint(system, job.id)
    assert_same_weights(exported(system, job.id), exported(system, undisturbed))


def test_cancelling_frees_every_process_within_ten_seconds(system: System, long_document: dict[str, Any]) -> None:
    long_document["train"]["epochs"] = 50
    job = system.client.jobs.create(JobSpec.model_validate(long_document))
    workers = system.worker_processes(job.id)
    assert all(worker.is_running() for worker in workers)
    system.client.jobs.cancel(job.id)
    start = time.monotonic()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    with pytest.raises(JobFailedError, match="cancelled"):
        system.client.jobs.wait(job.id, timeout_s=10 - (time.monotonic() - start))
    assert not system.drivers(job.run_url)


def test_a_row_without_an_assistant_turn_stops_the_job_before_training(
    system: System, job_document: dict[str, Any], tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    write_rows(tmp_path / "sums.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    job_document["data"]["sources"][0]["form"] = "messages"
    job = system.client.jobs.create(JobSpec.model_validate(job_document))
    with pytest.raises(JobFailedError, match=r"sums\.jsonl row 2: no assistant turn") as caught:
        system.client.jobs.wait(job.id, timeout_s=60)
    assert caught.value.field == "data.sources.0.uri"
    error = system.client.jobs.get(job.id).error
    assert error is not None
    assert (error.code, error.fault) == ("bad_row", "data")
    assert not [event for event in system.client.jobs.events(job.id).data if event.type == "train.started"]


def test_the_curl_example_runs_a_job_on_the_data_prepared_before(
    system: System, undisturbed: str, long_document: dict[str, Any], tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    long_document["train"]["max_steps"] = 1
    job_id = run_by_example(system, ["bash", "examples/quickstart.sh"], long_document, tmp_path)
    assert job_id != undisturbed
    assert system.client.jobs.report(job_id)["stages"][0]["reused"]
