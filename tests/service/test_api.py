from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi.testclient import TestClient

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.api.app import assemble, create_app, open_backend, open_store
from service.api.dependencies import ControlPlane
from service.client.client import Client
from service.errors import (
    BackendRefusedError,
    ConflictError,
    InvalidSettingsError,
    InvalidSpecError,
    NotAuthenticatedError,
    NotFoundError,
    SourceNotFoundError,
)
from service.reconcile import Reconciler
from service.serve import ensure_first_key
from service.settings import Settings
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.models import Base, JobRow
from service.store.store import Store
from tests.conftest import set_at
from tests.service.recording_backend import RecordingBackend

SNAPSHOT = Path(__file__).parent / "openapi.json"


def test_openapi_is_the_agreed_one(parts: ControlPlane) -> None:
    document = create_app(parts).openapi()
    document["info"]["version"] = "any"
    agreed = json.loads(SNAPSHOT.read_text())
    assert document == agreed, f"the API changed; if meant, write the new document to {SNAPSHOT}"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
def test_no_key_no_answer(parts: ControlPlane, key: str, header: dict[str, str]) -> None:
    del key
    anonymous = TestClient(create_app(parts))
    answer = anonymous.get("/v1/jobs", headers=header)
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert anonymous.get("/healthz").json()["status"] == "ok"


def test_a_job_is_created_listed_and_cancelled(client: Client, spec: JobSpec) -> None:
    job = client.jobs.create(spec)
    assert (job.status, job.attempt, job.queue_position) == ("queued", 0, 1)
    assert JobSpec.model_validate(job.spec) == spec
    assert job.spec_sha256 == spec.sha256()
    second = client.jobs.create(spec)
    assert second.queue_position == 2
    assert [item.id for item in client.jobs.list().data] == [second.id, job.id]
    page = client.jobs.list(limit=1)
    assert page.has_more
    assert [item.id for item in client.jobs.list(after=page.data[0].id).data] == [job.id]
    assert client.jobs.cancel(job.id).status == "cancelled"
    assert client.jobs.cancel(job.id).status == "cancelled", "cancelling twice is no error"
    assert client.jobs.get(second.id).queue_position == 1
    assert [item.id for item in client.jobs.list(statuses=["cancelled"]).data] == [job.id]


def test_the_same_idempotency_key_gives_the_same_job(client: Client, spec: JobSpec) -> None:
    first = client.jobs.create(spec, idempotency_key="k")
    assert client.jobs.create(spec, idempotency_key="k").id == first.id
    with pytest.raises(ConflictError, match="used with another body"):
        client.jobs.create(spec.model_copy(update={"seed": 1}), idempotency_key="k")
    assert len(client.jobs.list().data) == 1


def test_problems_name_every_field(http: TestClient, job_document: dict[str, Any]) -> None:
    job_document["train"] |= {"epochs": -1, "speed": 3}
    job_document["model"]["base"]["name"] = "nope"
    answer = http.post("/v1/jobs", json=job_document)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_spec"
    fields = {error["field"]: error["message"] for error in problem["errors"]}
    assert set(fields) == {"train.epochs", "train.speed", "model.base.name"}
    assert fields["train.speed"] == "unknown field"


@pytest.mark.parametrize(
    ("content", "content_type"), [("{", "application/json"), ("[]", "application/json"), ("name: x", "text/plain")]
)
def test_a_body_that_is_no_spec_is_refused(http: TestClient, content: str, content_type: str) -> None:
    answer = http.post("/v1/jobs", content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")


def test_a_missing_file_is_found_before_the_job_is_accepted(client: Client, job_document: dict[str, Any]) -> None:
    job_document["data"]["sources"][0]["uri"] = "file:///nowhere/*.jsonl"
    with pytest.raises(SourceNotFoundError, match=r"^data\.sources\.0\.uri: no such file: /nowhere"):
        client.jobs.create(JobSpec.model_validate(job_document))
    job_document["model"] = {"base": "/no/checkpoint"}
    job_document["data"]["sources"][0]["uri"] = f"file://{__file__}"
    with pytest.raises(SourceNotFoundError, match=r"^model\.base\.path"):
        client.jobs.create(JobSpec.model_validate(job_document))
    assert client.jobs.list().data == []


def test_unknown_things_are_not_found(client: Client, http: TestClient) -> None:
    for ask in (client.jobs.get, client.jobs.cancel, client.jobs.events, client.jobs.metrics, client.jobs.logs):
        with pytest.raises(NotFoundError, match="no job 'job-0'"):
            ask("job-0")
    assert http.get("/v1/nothing").json()["code"] == "not_found"
    assert http.put("/v1/jobs").json()["status"] == 405
    with pytest.raises(InvalidSpecError, match="limit"):
        client.jobs.list(limit=0)


def test_events_metrics_logs_and_report_of_a_run(
    client: Client, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job = client.jobs.create(spec)
    with pytest.raises(NotFoundError, match="is queued; a report is there once"):
        client.jobs.report(job.id)
    reconciler.reconcile()
    reconciler.reconcile()
    run = RunDirectory(job.run_url)
    with EventWriter(run, "driver", attempt=1) as events:
        events.emit("stage.started", stage="train")
        for step, loss in ((1, 3.0), (2, 2.0), (2, 2.5)):
            events.emit("train.step", stage="train", step=step, total_steps=2, loss=loss, eta_s=1.0)
        run.write_report({"outcome": "succeeded"})
        events.emit("job.finished")
    backend.states[f"{job.id}-a1"] = ("succeeded", "")
    reconciler.reconcile()
    done = client.jobs.get(job.id)
    assert (done.status, done.progress.stage, done.progress.step, done.progress.loss) == ("succeeded", "train", 2, 2.5)
    assert done.finished_at is not None
    events = client.jobs.events(job.id).data
    assert [event.sequence for event in events] == list(range(1, 10)), "numbered through"
    changes = [(event.data["old"], event.data["new"]) for event in events if event.type == "job.status"]
    assert changes == [
        (None, "queued"),
        ("queued", "submitting"),
        ("submitting", "running"),
        ("running", "succeeded"),
    ]
    assert [event.sequence for event in client.jobs.events(job.id, after=8).data] == [9]
    metrics = client.jobs.metrics(job.id)
    assert [(item.step, item.data["loss"]) for item in metrics] == [(1, 3.0), (2, 2.5)], "a step's last word counts"
    assert client.jobs.logs(job.id, tail=1) == f"logs of {job.id}-a1\n"
    assert client.jobs.report(job.id) == {"outcome": "succeeded"}
    told = [event.type for event in client.jobs.stream_events(job.id, after=4)]
    assert told == [*["train.step"] * 3, "job.finished", "job.status"]
    with pytest.raises(ConflictError, match="already succeeded"):
        client.jobs.cancel(job.id)


def test_readiness_follows_the_cluster(http: TestClient, backend: RecordingBackend) -> None:
    assert http.get("/readyz").status_code == 200
    backend.is_down = True
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["cluster"], answer.json()["store"]) == (503, "down", "ok")


def test_the_first_key_is_made_once_kept_for_its_owner_and_stored_as_a_hash(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "data")
    key = ensure_first_key(settings)
    assert key is not None
    assert ensure_first_key(settings) is None
    store = open_store(settings)
    assert store.authenticate(key).role == "admin"
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(key[:-1])
    assert settings.api_key_path.read_text() == key
    assert settings.api_key_path.stat().st_mode & 0o077 == 0
    assert key.encode() not in b"".join(path.read_bytes() for path in settings.data_dir.glob("sleddog.db*"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("evaluate.prompts", ["\ud800"]), ("data.mixture", {"\udfff": 1.0}), ("data.sources.0.uri", "file:///a\0b")],
)
def test_text_that_cannot_be_stored_is_refused(
    http: TestClient, job_document: dict[str, Any], field: str, value: Any
) -> None:
    set_at(job_document, field, value)
    answer = http.post("/v1/jobs", content=json.dumps(job_document), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert http.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "content", ['{"\\ud800": 1}', '{"name": "\\ud800"}', '{"name": 1' + "0" * 5000 + "}", "[" * 9999]
)
def test_odd_bodies_are_the_callers_fault(http: TestClient, content: str) -> None:
    answer = http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_a_broken_body_names_no_field(http: TestClient) -> None:
    answer = http.post("/v1/jobs", content="{", headers={"Content-Type": "application/json"})
    assert [error["field"] for error in answer.json()["errors"]] == [""]


def test_a_repeated_create_is_answered_even_when_the_data_has_gone(
    client: Client, spec: JobSpec, tmp_path: Path
) -> None:
    job = client.jobs.create(spec, idempotency_key="k")
    (tmp_path / "sums.jsonl").unlink()
    assert client.jobs.create(spec, idempotency_key="k").id == job.id
    with pytest.raises(SourceNotFoundError):
        client.jobs.create(spec, idempotency_key="another")


def test_an_empty_idempotency_key_is_none_of_all(http: TestClient, job_document: dict[str, Any]) -> None:
    answer = http.post("/v1/jobs", json=job_document, headers={"Idempotency-Key": ""})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "idempotency-key"


@pytest.mark.parametrize("path", ["events?after=9223372036854775808", "metrics?after=-1", "logs?tail=0"])
def test_numbers_out_of_range_are_refused(http: TestClient, client: Client, spec: JobSpec, path: str) -> None:
    answer = http.get(f"/v1/jobs/{client.jobs.create(spec).id}/{path}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, path.partition("?")[2].partition("=")[0])


def test_a_spec_of_another_version_is_still_listed(client: Client, store: Store, spec: JobSpec) -> None:
    job = client.jobs.create(spec)
    with store._transaction() as session:
        session.get_one(JobRow, job.id).spec = job.spec | {"retired": True}
    assert client.jobs.get(job.id).spec["retired"]
    assert len(store.unfinished()) == 1


def test_tables_are_what_the_migrations_make(store: Store) -> None:
    with store._engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert differences == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ray_dashboard_url": "https://ray", "runs_url": "s3://runs"}, "--ray-token-path"),
        ({"ray_dashboard_url": "https://ray", "ray_token_path": Path("token")}, "--runs-url"),
    ],
)
def test_half_settings_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        Settings(Path(), **fields)
    assert caught.value.field == field


@pytest.mark.parametrize("runs_url", ["/proc/nowhere", "nosuch://bucket"])
def test_run_directories_must_be_writable(
    store: Store, backend: RecordingBackend, tmp_path: Path, runs_url: str
) -> None:
    with pytest.raises(InvalidSettingsError, match="cannot write to the run directories"):
        assemble(Settings(tmp_path, runs_url=runs_url), store, backend)


def test_a_data_directory_has_one_local_head(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="a service already runs on"), open_backend(Settings(tmp_path)):
            pass


def test_an_error_is_answered_like_the_nearest_one_that_has_a_status(
    http: TestClient, store: Store, spec: JobSpec, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = store.create(Job, spec, "/runs")
    store.change_status(job, "submitting", attempt=1)

    def refuse(_submission_id: str) -> str:
        raise BackendRefusedError("not now")

    monkeypatch.setattr(backend, "logs", refuse)
    answer = http.get(f"/v1/jobs/{job.id}/logs")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_refused")
