"""Sweeps as a resource: the test plays the driver, and writes what it would."""

from __future__ import annotations

import asyncio
import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import text

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.client.client import AsyncClient, Client
from service.client.sweeps import AsyncSweeps, Sweeps
from service.errors import ConflictError, InvalidSpecError, JobFailedError, NotFoundError, SourceNotFoundError
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.spec.promotion import job_of_candidate
from service.spec.resources import Job, Sweep, SweepProgress
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import REPORT_PAGE_FILE, SWEEP_FILE, Candidate, SweepResults
from service.store.engine import MIGRATIONS, migrate, open_engine
from service.store.store import Store
from tests.conftest import set_at
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def sweep(store: Store, sweep_spec: SweepSpec, tmp_path: Path) -> Sweep:
    return store.create(Sweep, sweep_spec, str(tmp_path / "runs"))[0]


def write_results(sweep: Sweep, results: SweepResults) -> None:
    Path(sweep.run_url).mkdir(parents=True, exist_ok=True)
    (Path(sweep.run_url) / SWEEP_FILE).write_text(results.model_dump_json())


def test_a_sweep_is_created_listed_and_cancelled_and_is_no_job(client: Client, sweep_spec: SweepSpec) -> None:
    sweep = client.sweeps.create(sweep_spec, idempotency_key="k")
    assert sweep.id.startswith("sweep-")
    assert (sweep.status, sweep.queue_position, sweep.progress) == ("queued", 1, SweepProgress())
    assert SweepSpec.model_validate(sweep.spec) == sweep_spec
    job = client.jobs.create(sweep_spec.base)
    assert job.queue_position == 2, "they wait in one queue"
    assert client.sweeps.create(sweep_spec, idempotency_key="k").id == sweep.id
    with pytest.raises(ConflictError, match="used with another body"):
        client.jobs.create(sweep_spec.base, idempotency_key="k")
    assert [item.id for item in client.sweeps.list().data] == [sweep.id]
    assert [item.id for item in client.jobs.list().data] == [job.id]
    for ask in (client.jobs.get, client.jobs.cancel, client.jobs.events, client.jobs.logs, client.jobs.report):
        with pytest.raises(NotFoundError, match=f"there is no job '{sweep.id}'"):
            ask(sweep.id)
    for ask in (client.sweeps.get, client.sweeps.cancel, client.sweeps.events, client.sweeps.results):
        with pytest.raises(NotFoundError, match=f"there is no sweep '{job.id}'"):
            ask(job.id)
    with pytest.raises(NotFoundError, match="no sweep"):
        client.sweeps.list(after=job.id)
    assert sweep.cancel().status == "cancelled"
    assert sweep.refresh().status == "cancelled"
    with pytest.raises(JobFailedError, match=f"^sweep {sweep.id} cancelled"):
        sweep.wait()
    assert client.jobs.get(job.id).queue_position == 1


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("base.train.epochs", 0, "base.train.epochs"),
        ("base.data.sources.0.uri", 3, "base.data.sources.0.uri"),
        ("base.model.base.name", "nope", "base.model.base.name"),
        ("base.data.sources.1.form", "nope", "base.data.sources.1.form"),
        ("base.data.mixture", {"math": 1}, "base.data.mixture.general"),
        ("base.train.global_batch_rows", 3, "base.train.global_batch_rows"),
        ("base.speed", 3, "base.speed"),
        ("stages.0.max_steps", "many", "stages.0.max_steps"),
        ("stages.0.changes", {"train.epoch": 2}, "stages.0.changes"),
        ("axes.mixture", {"math": {"max": 0.1}, "general": {"max": 0.1}}, "axes.mixture"),
        ("objective.metrics", [{"name": "mmlu.accuracy"}], "objective.metrics.0.name"),
    ],
)
def test_a_bad_spec_is_refused_with_the_fields_path(
    http: TestClient, sweep_document: dict[str, Any], path: str, value: Any, field: str
) -> None:
    set_at(sweep_document, path, value)
    answer = http.post("/v1/sweeps", json=sweep_document)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert http.get("/v1/sweeps").json()["data"] == []


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("base.data.sources.1.uri", "file:///nowhere.jsonl", "base.data.sources.1.uri"),
        ("stages.0.changes", {"model": {"base": "/nowhere"}}, "stages.0.changes.model.base.path"),
        (
            "axes.fields",
            [{"kind": "choice", "path": "data.sources.0.uri", "values": [f"file://{__file__}", "/no"]}],
            "axes.fields.0.values.1.data.sources.0.uri",
        ),
    ],
)
def test_a_missing_file_is_found_before_the_sweep_is_accepted(
    client: Client, sweep_document: dict[str, Any], path: str, value: Any, field: str
) -> None:
    set_at(sweep_document, path, value)
    with pytest.raises(SourceNotFoundError, match="no such file") as caught:
        client.sweeps.create(SweepSpec.model_validate(sweep_document))
    assert caught.value.field == field


def test_what_can_never_find_room_is_refused_with_the_reason(
    client: Client, backend: RecordingBackend, sweep_document: dict[str, Any]
) -> None:
    backend.max_cpus = 3
    workers = {"parallel.num_workers": 4, "parallel.expert_parallel_size": 4, "train.global_batch_rows": 4}
    sweep_document["stages"].append({"name": "target", "max_steps": 4, "changes": workers})
    with pytest.raises(InvalidSpecError, match="need 4 CPUs at once, and the cluster has 3") as caught:
        client.sweeps.create(SweepSpec.model_validate(sweep_document))
    assert caught.value.field == "stages.1.changes.parallel.num_workers"
    sweep_document["base"]["parallel"] |= {"cpus_per_worker": 2.0}
    with pytest.raises(InvalidSpecError, match="need 4 CPUs") as caught:
        client.jobs.create(JobSpec.model_validate(sweep_document["base"]))
    assert caught.value.field == "parallel.num_workers"
    for stage in sweep_document["stages"]:
        stage["changes"] = {"parallel.cpus_per_worker": 1.0}
    sweep = client.sweeps.create(SweepSpec.model_validate(sweep_document))
    assert sweep.status == "queued", "the base job itself may be for a larger cluster"
    sweep_document["stages"][1]["changes"] = workers
    backend.max_cpus = None
    assert client.sweeps.create(SweepSpec.model_validate(sweep_document)).status == "queued", "the cluster may grow"


@pytest.mark.parametrize(
    ("axis", "field"),
    [
        ({"kind": "choice", "values": [1.0, 2.0]}, "axes.fields.0.values.1.parallel.num_workers"),
        ({"kind": "range", "low": 0.5, "high": 2.0}, "axes.fields.0.high.parallel.num_workers"),
    ],
)
def test_an_axis_that_can_never_find_room_is_refused(
    client: Client, backend: RecordingBackend, sweep_document: dict[str, Any], axis: dict[str, Any], field: str
) -> None:
    backend.max_cpus = 3
    sweep_document["axes"] = {"fields": [axis | {"path": "parallel.cpus_per_worker"}]}
    with pytest.raises(InvalidSpecError, match="need 4 CPUs at once, and the cluster has 3") as caught:
        client.sweeps.create(SweepSpec.model_validate(sweep_document))
    assert caught.value.field == field
    sweep_document["stages"][0]["changes"] = {"parallel.num_workers": 1, "parallel.expert_parallel_size": 1}
    assert client.sweeps.create(SweepSpec.model_validate(sweep_document)).status == "queued"


def test_a_sweep_is_run_like_a_job_by_its_own_driver(
    client: Client,
    store: Store,
    backend: RecordingBackend,
    reconciler: Reconciler,
    sweep: Sweep,
    spec: JobSpec,
    tmp_path: Path,
) -> None:
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler.reconcile()
    reconciler.reconcile()
    assert backend.kinds == {f"{sweep.id}-a1": "sweep"}
    assert (Path(sweep.run_url) / "spec.json").exists()
    del backend.states[f"{sweep.id}-a1"]  # Ray lost it
    reconciler.reconcile()
    reconciler.reconcile()
    assert store.get(Sweep, sweep.id).attempt == 2
    with EventWriter(RunDirectory(sweep.run_url), "driver", attempt=2) as events:
        events.emit("stage.progress", stage="prepare", task="pack", done=1, total=2, unit="shards")
        events.emit("trial.started", trial="a-s0", stage="proxy", candidate="a", seed=0, mixture={"math": 1.0})
        events.emit("trial.ended", trial="a-s0", status="succeeded", metrics={"held_out_loss": 2.0}, score=0.1)
        events.emit(
            "sweep.progress", stage="proxy", round=1, trials_ended=1, trials_planned=9, best_score=0.1, best="a"
        )
    reconciler.reconcile()
    assert client.sweeps.get(sweep.id).progress == SweepProgress(
        stage="proxy", round=1, trials_ended=1, trials_planned=9, best="a", best_score=0.1
    ), "the data's task is over"
    with EventWriter(RunDirectory(sweep.run_url), "last", attempt=2) as events:
        events.emit("job.finished")
    backend.states[f"{sweep.id}-a2"] = ("succeeded", "")
    reconciler.reconcile()
    reconciler.reconcile()
    reconciler.reconcile()
    assert client.sweeps.get(sweep.id).wait().status == "succeeded"
    types = [event.type for event in client.sweeps.get(sweep.id).stream_events() if event.type != "job.status"]
    assert types == ["stage.progress", "trial.started", "trial.ended", "sweep.progress", "job.finished"]
    assert backend.kinds[f"{job.id}-a1"] == "job"


def test_trials_are_filtered_and_paged(client: Client, http: TestClient, sweep: Sweep, results: SweepResults) -> None:
    assert client.sweeps.trials(sweep.id) == []
    assert client.sweeps.beams(sweep.id) == []
    write_results(sweep, results)
    handle = client.sweeps.get(sweep.id)
    assert handle.trials() == results.trials
    assert [trial.id for trial in handle.trials(candidate="proxy-base")] == ["proxy-base-s0", "proxy-base-s1"]
    assert [trial.id for trial in handle.trials(stage="target")] == ["target-base-s0", "target-1-s0"]
    assert [trial.reason for trial in client.sweeps.trials(sweep.id, statuses=["failed"])] == ["no"]
    path = f"/v1/sweeps/{sweep.id}/trials"
    page = http.get(f"{path}?limit=2").json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (["proxy-base-s0", "proxy-1-s0"], True)
    page = http.get(f"{path}?limit=2&after=target-1-s0").json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (["proxy-base-s1"], False)
    assert http.get(f"{path}?after=nothing").status_code == 404
    assert http.get(f"{path}/proxy-1-s0").json()["candidate"] == "proxy-1"
    assert http.get(f"{path}/nothing").json()["detail"] == "the sweep has no trial 'nothing'"
    assert http.get(f"{path}?status=happy").json()["errors"][0]["field"] == "status.0"


def test_what_a_cancelled_sweep_left_undone_is_unfinished(
    client: Client, store: Store, sweep: Sweep, results: SweepResults
) -> None:
    first, second, *others = results.trials
    trials = [first.model_copy(update={"status": "running"}), second.model_copy(update={"status": "pending"}), *others]
    stages = [stage.model_copy(update={"status": "running"}) for stage in results.stages]
    write_results(sweep, results.model_copy(update={"trials": trials, "stages": stages}))
    handle = client.sweeps.get(sweep.id)
    assert [trial.status for trial in handle.trials()][:2] == ["running", "pending"]
    handle.cancel()
    found = handle.results()
    assert found.trials == handle.trials()
    assert [trial.status for trial in found.trials[:2]] == ["unfinished"] * 2
    assert found.trials[2:] == others, "what had ended stays"
    assert {stage.status for stage in found.stages} == {"unfinished"}


def test_the_leaderboard_has_the_best_first(client: Client, sweep: Sweep, results: SweepResults) -> None:
    write_results(sweep, results)
    handle = client.sweeps.get(sweep.id)
    assert [beam.id for beam in handle.beams()] == ["proxy-1", "proxy-2", "target-1"]
    everyone = ["proxy-1", "proxy-2", "proxy-base", "target-1", "target-base"]
    assert [beam.id for beam in handle.beams(all_candidates=True)] == everyone
    [target] = handle.beams(stage="target")
    assert (target.parent, target.mixture) == ("proxy-1", {"general": 0.25, "math": 0.75})
    assert target == results.candidates[-1], "as the driver wrote it, gains with noise and cost too"


def test_the_winner_becomes_a_job(client: Client, http: TestClient, sweep: Sweep, results: SweepResults) -> None:
    handle = client.sweeps.get(sweep.id)
    with pytest.raises(NotFoundError, match="is queued; results are there once"):
        handle.results()
    write_results(sweep, results)
    assert handle.results() == results
    best = handle.best()
    assert best.candidate.id == "target-1"
    spec = SweepSpec.model_validate(sweep.spec)
    expected = spec.base.model_dump(mode="json")
    expected["data"]["mixture"] = {"general": 0.25, "math": 0.75}
    assert best.job == JobSpec.model_validate(expected)
    assert handle.promote("target-1") == best.job
    with pytest.raises(NotFoundError, match="no candidate 'nobody'"):
        handle.promote("nobody")
    job = client.jobs.create_from(best)
    assert JobSpec.model_validate(job.spec) == best.job
    answer = http.post(f"/v1/sweeps/{sweep.id}/beams/target-1/promote")
    assert answer.status_code == 200
    assert http.post("/v1/jobs", json=answer.json()).status_code == 201, "what it answers can be posted"
    write_results(sweep, results.model_copy(update={"best": None}))
    with pytest.raises(NotFoundError, match="no best candidate yet"):
        handle.best()


def test_a_candidate_keeps_the_base_mixs_limits_and_brings_its_own_values(sweep_document: dict[str, Any]) -> None:
    sweep_document["base"]["data"]["mixture"] = {"math": {"share": 1, "max_epochs": 3.0}, "general": 1}
    spec = SweepSpec.model_validate(sweep_document)
    fields = {"train.learning_rate": 3e-4}
    found = Candidate(
        id="c", stage="proxy", round=0, role="spread", mixture={"math": 0.2, "general": 0.8}, fields=fields
    )
    job = job_of_candidate(spec, found)
    assert job.data.mixture is not None
    assert (job.data.mixture["math"].share, job.data.mixture["math"].max_epochs) == (0.2, 3)
    assert (job.train.learning_rate, job.train.max_steps) == (3e-4, None)
    without = found.model_copy(update={"mixture": None, "fields": {}, "left_out": "rhymes"})
    with pytest.raises(InvalidSpecError, match="must be 0: all sources of the category are left or held out"):
        job_of_candidate(spec, without)
    sweep_document["base"]["data"]["mixture"] = None
    spec = SweepSpec.model_validate(sweep_document)
    job = job_of_candidate(spec, without)
    assert (job.data.mixture, job.data.leave_out) == (None, ("rhymes",))
    axes = {"mixture": {"math": {}, "general": {"max": 0}}}
    with pytest.raises(InvalidSpecError, match="candidate c makes no job: no source is left"):
        job_of_candidate(
            SweepSpec.model_validate(sweep_document | {"base": job.model_dump(), "axes": axes}),
            without.model_copy(update={"left_out": "sums"}),
        )


def test_the_report_is_a_page(client: Client, http: TestClient, sweep: Sweep) -> None:
    with pytest.raises(NotFoundError, match="is queued; a report is there once it has ended"):
        client.sweeps.report(sweep.id)
    Path(sweep.run_url).mkdir(parents=True)
    (Path(sweep.run_url) / REPORT_PAGE_FILE).write_text("<h1>Mixes · 5 %</h1>")
    assert client.sweeps.get(sweep.id).report() == "<h1>Mixes · 5 %</h1>"
    assert http.get(f"/v1/sweeps/{sweep.id}/report").headers["content-type"] == "text/html; charset=utf-8"


def test_the_awaited_client_does_what_the_blocking_one_does(
    url: str, key: str, client: Client, sweep: Sweep, sweep_spec: SweepSpec, results: SweepResults
) -> None:
    async def use() -> dict[str, Any]:
        async with AsyncClient(url, key) as awaited:
            assert await awaited.sweeps.find_results(sweep.id) is None
            write_results(sweep, results)
            (Path(sweep.run_url) / REPORT_PAGE_FILE).write_text("page")
            second = await awaited.sweeps.create(sweep_spec, idempotency_key="k")
            assert second.id == client.sweeps.create(sweep_spec, idempotency_key="k").id
            best = await awaited.sweeps.best(sweep.id)
            assert (await awaited.jobs.create_from(best)).name == sweep_spec.base.name
            return {
                "best": best,
                "results": await awaited.sweeps.find_results(sweep.id),
                "trials": await awaited.sweeps.trials(sweep.id, stage="target"),
                "beams": await awaited.sweeps.beams(sweep.id, all_candidates=True),
                "promoted": await awaited.sweeps.promote(sweep.id, "proxy-2"),
                "report": await awaited.sweeps.report(sweep.id),
            }

    handle = client.sweeps.get(sweep.id)
    assert asyncio.run(use()) == {
        "best": handle.best(),
        "results": handle.results(),
        "trials": handle.trials(stage="target"),
        "beams": handle.beams(all_candidates=True),
        "promoted": handle.promote("proxy-2"),
        "report": "page",
    }


def test_the_public_surface_of_both_clients_is_the_same() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Sweeps) == public(AsyncSweeps)


def test_results_are_a_table(results: SweepResults, monkeypatch: pytest.MonkeyPatch) -> None:
    table = results.to_pandas()
    assert list(table["trial"]) == [trial.id for trial in results.trials]
    row = table[table["trial"] == "target-1-s0"].iloc[0]
    assert (row["share.math"], row["score"], row["role"], row["duration_s"]) == (0.75, 0.05, "promoted", 10)
    really = builtins.__import__

    def without_pandas(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return really(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="pip install pandas"):
        results.to_pandas()


def test_jobs_of_the_first_schema_are_jobs_still(tmp_path: Path, spec: JobSpec) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    row = {"id": "job-1", "spec": spec.model_dump_json(), "sha": spec.sha256(), "at": "2026-01-01 00:00:00.000000"}
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO jobs (id, name, status, attempt, spec, spec_sha256, run_url, created_at, progress)"
                " VALUES (:id, 'old', 'running', 1, :spec, :sha, '/runs/job-1', :at, '{\"stage\": \"train\"}')"
            ),
            row,
        )
    migrate(engine)
    store = Store(engine, b"0" * 32)
    job = store.get(Job, "job-1")
    assert (job.name, job.status, job.progress.stage) == ("old", "running", "train")
    assert JobSpec.model_validate(job.spec) == spec
    assert [found.id for found in store.unfinished()] == ["job-1"]
    with pytest.raises(NotFoundError):
        store.get(Sweep, "job-1")
