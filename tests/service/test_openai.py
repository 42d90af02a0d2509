"""OpenAI's own Python package, unmodified, against the real application over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from openai.types.fine_tuning import FineTuningJob

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.client.client import AsyncClient, Client
from service.datasets import worker
from service.datasets.process import perform
from service.errors import ConflictError, InvalidSpecError, NotFoundError
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from tests.conftest import write_rows
from tests.service.recording_backend import RecordingBackend
from tests.service.test_datasets import CHATS

SMALL = {"parallel": {"num_workers": 2, "accelerator": "cpu"}, "data": {"sequence_length": 64}}


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process; that another one does it is test_datasets' subject."""
    monkeypatch.setattr(worker, "run_task", lambda task, **_limits: perform(task))


@pytest.fixture
def api(url: str, key: str, working: None) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as api:
        yield api


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chats.jsonl", CHATS)


@pytest.fixture
def file_id(api: openai.OpenAI, chats: Path) -> str:
    return api.files.create(file=chats, purpose="fine-tune").id


def start(api: openai.OpenAI, file_id: str, **fields: Any) -> FineTuningJob:
    fields = {"model": "quickstart", "training_file": file_id, "extra_body": {"sleddog": SMALL}} | fields
    return api.fine_tuning.jobs.create(**fields)


def spec_of(client: Client, job_id: str) -> JobSpec:
    return JobSpec.model_validate(client.jobs.get(job_id).spec)


def test_a_file_is_uploaded_listed_read_and_deleted(api: openai.OpenAI, chats: Path, client: Client) -> None:
    file = api.files.create(file=chats, purpose="fine-tune")
    assert (file.object, file.filename, file.bytes, file.purpose) == (
        "file",
        "chats.jsonl",
        chats.stat().st_size,
        "fine-tune",
    )
    assert api.files.wait_for_processing(file.id).status == "processed"
    assert api.files.content(file.id).read() == chats.read_bytes()
    assert client.datasets.get(file.id).status == "ready", "a file is a dataset"
    second = api.files.create(file=("b.jsonl", b"{}\n"), purpose="user_data")
    third = api.files.create(file=("b.jsonl", b"{}\n"), purpose="user_data")
    assert second.id != third.id, "the same file twice is two files"
    assert [item.id for item in api.files.list(limit=1)] == [third.id, second.id, file.id], "page by page"
    assert [item.id for item in api.files.list(order="asc", limit=2)] == [file.id, second.id, third.id]
    assert [item.id for item in api.files.list(purpose="user_data")] == [third.id, second.id]
    assert api.files.delete(second.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(second.id)


@pytest.mark.parametrize(
    ("name", "content", "param"),
    [("a.zip", b"x", "name"), ("a", b"x", "format"), ("a.jsonl", b"", "file"), ("torn.jsonl.gz", b"x", "file")],
)
def test_a_file_that_cannot_be_read_is_refused(api: openai.OpenAI, name: str, content: bytes, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=(name, content), purpose="fine-tune")
    assert caught.value.param == param


def test_an_upload_is_refused_before_its_body_is_read(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "multipart/form-data"}
    lengths: list[tuple[dict[str, str], int, str]] = [
        ({"Content-Length": "999999999999"}, 413, "in parts"),
        ({"Transfer-Encoding": "chunked"}, 411, "Content-Length"),
    ]
    for length, status, reason in lengths:
        with closing(HTTPConnection(url.removeprefix("http://"))) as connection:
            connection.request("POST", "/v1/files", headers=headers | length)
            answer = connection.getresponse()
            assert answer.status == status
            assert reason in json.loads(answer.read())["error"]["message"]


def test_hyperparameters_become_a_job(api: openai.OpenAI, client: Client, file_id: str, chats: Path) -> None:
    validation = api.files.create(file=("more.jsonl", chats.read_bytes()), purpose="fine-tune")
    job = start(
        api,
        file_id,
        validation_file=validation.id,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 50}},
        },
        seed=7,
        suffix="My Model!",
        metadata={"team": "sled"},
        integrations=[{"type": "wandb", "wandb": {"project": "dogs", "entity": "team"}}],
    )
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", "quickstart", 7)
    assert (job.training_file, job.validation_file, job.metadata) == (file_id, validation.id, {"team": "sled"})
    assert job.method is not None
    assert job.method.supervised is not None
    for found in (job.hyperparameters, job.method.supervised.hyperparameters):
        assert found is not None
        assert (found.n_epochs, found.batch_size, found.learning_rate_multiplier) == (3, 4, 50)
    assert (job.fine_tuned_model, job.finished_at, job.error, job.trained_tokens) == (None, None, None, None)
    assert job.organization_id == "default"
    assert job.model_extra is not None
    assert job.model_extra["sleddog"]["overrides"] == SMALL
    spec = spec_of(client, job.id)
    assert (spec.name, spec.seed, spec.train.epochs, spec.train.global_batch_rows) == ("my-model", 7, 3, 4)
    assert spec.train.learning_rate == pytest.approx(1e-3)
    assert (spec.parallel.num_workers, spec.data.sequence_length) == (2, 64)
    assert [(source.uri, source.hold_out) for source in spec.data.sources] == [  # type: ignore[union-attr]
        (f"dataset://{file_id}", False),
        (f"dataset://{validation.id}", True),
    ]
    assert spec.track.wandb is not None
    assert (spec.track.wandb.project, spec.track.wandb.entity) == ("dogs", "team")
    assert api.fine_tuning.jobs.retrieve(job.id) == job


def test_what_is_not_said_has_the_recipes_value(api: openai.OpenAI, client: Client, file_id: str) -> None:
    job = start(api, file_id, extra_body={})
    spec = spec_of(client, job.id)
    assert (spec.train.epochs, spec.train.learning_rate, spec.train.global_batch_rows) == (2, 2e-5, 1)
    assert (spec.name, spec.seed) == ("fine-tuning", 0)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (2, 1)
    old_form = start(api, file_id, hyperparameters={"n_epochs": 5, "batch_size": "auto"})
    assert old_form.hyperparameters.n_epochs == 5


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"model": "gpt-4"}, "model", 404),
        ({"training_file": "ds-0-0000000000000000"}, "training_file", 400),
        ({"validation_file": "ds-0-0000000000000000"}, "validation_file", 400),
        ({"hyperparameters": {"batch_size": 3}}, "hyperparameters.batch_size", 400),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", 400),
        ({"method": {"type": "dpo"}}, "method.type", 400),
        ({"extra_body": {"speed": 9}}, "speed", 400),
        ({"extra_body": {"sleddog": {"train": {"epochs": -1}}}}, "sleddog.train.epochs", 400),
        ({"extra_body": {"sleddog": {"train": {"speed": 9}}}}, "sleddog.train.speed", 400),
        ({"extra_body": {"sleddog": {"train": 3}}}, "sleddog.train", 400),
        ({"suffix": "x" * 65}, "suffix", 400),
        ({"seed": -1}, "seed", 400),
    ],
)
def test_an_error_names_the_field_in_openais_form(
    api: openai.OpenAI, client: Client, file_id: str, fields: dict[str, Any], param: str, status: int
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        start(api, file_id, **fields)
    error = caught.value
    assert (error.status_code, error.param, error.type) == (status, param, "invalid_request_error")
    assert error.request_id is not None
    assert error.code == ("model_not_found" if status == 404 else "invalid_spec")
    assert client.jobs.list().data == []


def test_no_key_is_told_as_openai_does(url: str, http: TestClient) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sd-wrong", max_retries=0) as api:
        with pytest.raises(openai.AuthenticationError) as caught:
            api.models.list()
        assert (caught.value.code, caught.value.request_id is not None) == ("invalid_api_key", True)
    assert http.get("/v1/jobs/none").headers["content-type"] == "application/problem+json", "other routes keep theirs"
    assert http.get("/v1/fine_tuning/nothing").json()["error"]["code"] == "not_found"


def test_jobs_are_listed_page_by_page_and_by_metadata(api: openai.OpenAI, client: Client, file_id: str) -> None:
    ids = [start(api, file_id, seed=n, metadata={"n": str(n % 2)}).id for n in range(5)]
    page = api.fine_tuning.jobs.list(limit=2)
    assert ([job.id for job in page.data], page.has_more) == (ids[:-3:-1], True)
    assert [job.id for job in page] == ids[::-1], "the package asks for the next pages"
    assert [job.id for job in api.fine_tuning.jobs.list(after=ids[1])] == [ids[0]]
    assert [job.id for job in api.fine_tuning.jobs.list(metadata={"n": "1"})] == [ids[3], ids[1]]
    other = client.jobs.create(spec_of(client, ids[0]))
    assert other.id not in [job.id for job in api.fine_tuning.jobs.list()], "it did not come by this API"
    with pytest.raises(openai.NotFoundError):
        api.fine_tuning.jobs.retrieve(other.id)


class LosesAnswers(httpx2.HTTPTransport):
    """The real way to the service; the first answers of a POST to a path are lost."""

    def __init__(self, path: str, num_lost: int) -> None:
        super().__init__()
        self.path, self.num_lost = path, num_lost

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().handle_request(request)
        if request.method == "POST" and request.url.path == self.path and self.num_lost:
            self.num_lost -= 1
            answer.close()
            return httpx2.Response(503, headers={"retry-after-ms": "1"})
        return answer


def lossy(url: str, key: str, path: str, num_lost: int) -> openai.OpenAI:
    transport = LosesAnswers(path, num_lost)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=openai.DefaultHttpxClient(transport=transport))


def test_a_create_whose_answers_are_lost_makes_one_job(
    url: str, key: str, api: openai.OpenAI, client: Client, file_id: str
) -> None:
    with lossy(url, key, "/v1/fine_tuning/jobs", 2) as unlucky:
        job = start(unlucky, file_id)
        assert [item.id for item in client.jobs.list().data] == [job.id]
        again = start(unlucky, file_id)
    assert [item.id for item in client.jobs.list().data] == [again.id, job.id], "asked for twice, made twice"


def test_a_repetition_whose_first_try_never_came_makes_the_job(
    api: openai.OpenAI, client: Client, file_id: str
) -> None:
    job = start(api, file_id, extra_headers={"x-stainless-retry-count": "1"})
    assert start(api, file_id, extra_headers={"x-stainless-retry-count": "2"}).id == job.id
    assert len(client.jobs.list().data) == 1


def test_an_upload_whose_answer_is_lost_makes_one_file(url: str, key: str, api: openai.OpenAI, chats: Path) -> None:
    with lossy(url, key, "/v1/files", 1) as unlucky:
        file = unlucky.files.create(file=chats, purpose="fine-tune")
    assert [item.id for item in api.files.list()] == [file.id]


def test_the_same_key_makes_one_job_and_one_file(
    api: openai.OpenAI, client: Client, chats: Path, tmp_path: Path
) -> None:
    header = {"Idempotency-Key": "file-1"}
    file = api.files.create(file=chats, purpose="fine-tune", extra_headers=header)
    assert api.files.create(file=chats, purpose="fine-tune", extra_headers=header).id == file.id
    changed = tmp_path / chats.name
    changed.write_bytes(chats.read_bytes()[::-1])
    with pytest.raises(openai.ConflictError) as refused:
        api.files.create(file=changed, purpose="fine-tune", extra_headers=header)
    assert refused.value.param == "Idempotency-Key"
    assert [item.id for item in api.files.list()] == [file.id]
    api.files.delete(file.id)
    file = api.files.create(file=chats, purpose="fine-tune", extra_headers=header)
    assert [item.id for item in api.files.list()] == [file.id], "what is deleted leaves its key"

    header = {"Idempotency-Key": "job-1"}
    job = start(api, file.id, extra_headers=header)
    assert start(api, file.id, extra_headers=header).id == job.id
    for other in ({"suffix": "other"}, {"extra_headers": {"Idempotency-Key": "file-1"}}):
        with pytest.raises(openai.ConflictError) as refused:
            start(api, file.id, **{"extra_headers": header} | other)
        assert refused.value.param == "Idempotency-Key"
    assert [item.id for item in client.jobs.list().data] == [job.id]
    assert start(api, file.id).id != job.id, "without a key it is another one"


def run_to_its_end(client: Client, job_id: str, reconciler: Reconciler, backend: RecordingBackend) -> None:
    for _ in range(2):
        reconciler.reconcile()
    run = RunDirectory(client.jobs.get(job_id).run_url)
    with EventWriter(run, "driver", attempt=1) as events:
        events.emit("stage.started", stage="prepare")
        events.emit("stage.progress", stage="prepare", task="hash", done=1, total=2, unit="files", eta_s=None)
        events.emit("job.warning", stage="train", message="a spike", kind="loss_spike")
        events.emit("train.started", stage="train", start_step=0, total_steps=4)
        for step in (1, 2, 3, 4):
            events.emit(
                "train.step", stage="train", step=step, total_steps=4, loss=4.0 - step, trained_tokens=10, eta_s=60.0
            )
            if step % 2 == 0:
                events.emit("eval.held_out", when=f"step-{step}", step=step, loss={"training": 3.0, "validation": 2.5})
                events.emit("checkpoint.saved", step=step, path=f"step-{step}")


def finish(client: Client, job_id: str, reconciler: Reconciler, backend: RecordingBackend) -> None:
    run = RunDirectory(client.jobs.get(job_id).run_url)
    with EventWriter(run, "driver", attempt=1) as events:
        run.write_report({"export": {"path": "/exports/model"}})
        events.emit("job.finished", report="report.json")
    backend.states[f"{job_id}-a1"] = ("succeeded", "")
    reconciler.reconcile()


def test_a_run_is_followed_by_its_events_and_checkpoints(
    api: openai.OpenAI, client: Client, file_id: str, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job_id = start(api, file_id, suffix="sled").id
    run_to_its_end(client, job_id, reconciler, backend)
    reconciler.reconcile()
    job = api.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.estimated_finish is not None) == ("running", False), "no stage of training has begun"
    events = [event for event in api.fine_tuning.jobs.list_events(job_id, limit=3) if event.type == "metrics"]
    assert events[0].data == {"step": 4, "total_steps": 4, "train_loss": 0.0}
    assert events[-1].message == "Step 1/4: training loss=3.0"
    with pytest.raises(openai.NotFoundError):
        list(api.fine_tuning.jobs.list_events(job_id, after="ftevent-none-1"))
    [warning] = [event for event in api.fine_tuning.jobs.list_events(job_id) if event.level == "warn"]
    assert warning.message == "a spike"
    checkpoints = api.fine_tuning.jobs.checkpoints.list(job_id, limit=1)
    assert checkpoints.has_more
    found = list(checkpoints)
    assert [item.step_number for item in found] == [4, 2]
    assert (found[1].metrics.train_loss, found[1].metrics.full_valid_loss, found[1].metrics.step) == (2.0, 2.5, 2)
    finish(client, job_id, reconciler, backend)
    job = api.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.trained_tokens, job.finished_at is not None) == ("succeeded", 40, True)
    assert job.fine_tuned_model == f"ft:quickstart:default:sled:{job_id}"
    assert found[1].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-2"
    model = api.models.retrieve(job.fine_tuned_model)
    assert (model.model_extra or {})["uri"] == "/exports/model"
    backend.shares_filesystem = False
    another = start(api, file_id, model=job.fine_tuned_model)
    assert spec_of(client, another.id).model.base.path == "/exports/model"  # type: ignore[union-attr]
    client.jobs.delete(job_id)
    with pytest.raises(openai.NotFoundError):
        api.fine_tuning.jobs.retrieve(job_id)


def test_events_come_while_a_job_runs(
    url: str, key: str, api: openai.OpenAI, client: Client, file_id: str, reconciler: Reconciler
) -> None:
    job_id = start(api, file_id).id
    for _ in range(2):
        reconciler.reconcile()

    async def follow() -> list[int]:
        """As users do: ask again for what is newer than the last event seen."""
        seen: list[int] = []
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as awaited:
            for step in (1, 2, 3):
                with EventWriter(RunDirectory(client.jobs.get(job_id).run_url), f"driver{step}", attempt=1) as events:
                    events.emit("train.step", stage="train", step=step, total_steps=3, loss=1.0)
                reconciler.reconcile()
                page = await awaited.fine_tuning.jobs.list_events(job_id)
                seen += [event.data["step"] for event in page.data[:1] if event.data]  # type: ignore[attr-defined,index]
        return seen

    assert asyncio.run(follow()) == [1, 2, 3]


def test_a_job_is_cancelled(
    api: openai.OpenAI, client: Client, file_id: str, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    waiting, running = start(api, file_id).id, start(api, file_id).id
    assert api.fine_tuning.jobs.cancel(waiting).status == "cancelled"
    for _ in range(2):
        reconciler.reconcile()
    assert api.fine_tuning.jobs.cancel(running).status == "cancelled"
    reconciler.reconcile()
    assert backend.stopped == [f"{running}-a1"]
    finished = start(api, file_id).id
    backend.states[f"{running}-a1"] = ("stopped", "")
    reconciler.reconcile()
    run_to_its_end(client, finished, reconciler, backend)
    finish(client, finished, reconciler, backend)
    with pytest.raises(openai.ConflictError) as caught:
        api.fine_tuning.jobs.cancel(finished)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_job_is_paused_and_resumed(
    api: openai.OpenAI, client: Client, file_id: str, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job_id = start(api, file_id).id
    for _ in range(2):
        reconciler.reconcile()
    assert api.fine_tuning.jobs.pause(job_id).status == "paused"
    reconciler.reconcile()
    with pytest.raises(openai.ConflictError, match="still being stopped") as caught:
        api.fine_tuning.jobs.resume(job_id)
    assert caught.value.response.headers["x-should-retry"] == "true"
    backend.states[f"{job_id}-a1"] = ("stopped", "")
    reconciler.reconcile()
    assert api.fine_tuning.jobs.pause(job_id).status == "paused", "pausing twice is no error"
    assert [job.status for job in api.fine_tuning.jobs.list()] == ["paused"]
    assert api.fine_tuning.jobs.resume(job_id).status == "queued"
    for _ in range(2):
        reconciler.reconcile()
    assert api.fine_tuning.jobs.resume(job_id).status == "running", "resuming twice is no error"
    assert backend.submitted == [f"{job_id}-a1", f"{job_id}-a2"]
    assert api.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="nothing to pause"):
        api.fine_tuning.jobs.pause(job_id)


def test_a_failed_job_says_why(
    api: openai.OpenAI, client: Client, file_id: str, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job_id = start(api, file_id).id
    for _ in range(2):
        reconciler.reconcile()
    with EventWriter(RunDirectory(client.jobs.get(job_id).run_url), "driver", attempt=1) as events:
        events.emit("job.failed", message="row 3 is none", code="bad_row", fault="data", field="data.sources.0.uri")
    backend.states[f"{job_id}-a1"] = ("failed", "")
    reconciler.reconcile()
    error = api.fine_tuning.jobs.retrieve(job_id).error
    assert error is not None
    assert (error.code, error.message, error.param) == ("bad_row", "row 3 is none", "training_file")


def test_checkpoints_are_registered_and_trained_on(
    api: openai.OpenAI, client: Client, file_id: str, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    registered = client.models.register("our-base", str(tmp_path / "base"))
    assert client.models.register("our-base", str(tmp_path / "base")) == registered
    with pytest.raises(ConflictError, match="delete it first"):
        client.models.register("our-base", "/elsewhere")
    with pytest.raises(InvalidSpecError, match="is a preset's name"):
        client.models._client.send(calls_register("quickstart"))
    assert {"quickstart", "our-base"} <= {model.id for model in api.models.list()}
    model = api.models.retrieve("our-base")
    assert (model.owned_by, (model.model_extra or {})["kind"]) == ("default", "registered")
    job = start(api, file_id, model="our-base")
    assert spec_of(client, job.id).model.base.path == str(tmp_path / "base")  # type: ignore[union-attr]
    assert api.models.delete("our-base").deleted
    with pytest.raises(NotFoundError):
        client.models.delete("our-base")


def test_models_are_the_same_for_the_awaited_client(url: str, key: str, client: Client) -> None:
    async def use() -> list[str]:
        async with AsyncClient(url, key) as awaited:
            await awaited.models.register("b", "/b")
            assert (await awaited.models.get("b")).uri == "/b"
            names = [model.id for model in await awaited.models.list() if model.kind == "registered"]
            await awaited.models.delete("b")
            return names

    client.models.register("a", "/a")
    assert asyncio.run(use()) == ["a", "b"]
    assert [model.id for model in client.models.list() if model.kind == "registered"] == ["a"]


def calls_register(name: str) -> Any:
    """A registration that the client itself would refuse."""
    from service.client.calls import Call, model

    return Call("POST", "/v1/models", model(dict[str, Any]), json={"name": name, "uri": "/base"})
