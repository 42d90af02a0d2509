"""What a job has left, and what it is compared with: the test plays the driver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moe.config import PRESETS
from ray_jobs.data.lineage import write_lineage
from ray_jobs.data.prepare import require_expected
from ray_jobs.fence import claim_attempt, claim_start
from ray_jobs.run_directory import EventWriter, RunDirectory
from service.api.byte_range import parse_range
from service.cli import app
from service.client import calls
from service.client.client import AsyncClient, Client
from service.comparison import differences
from service.errors import ConflictError, DataChangedError, NotFoundError, SourceNotFoundError
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.models import JobRow
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend

_WEIGHTS = bytes(range(256)) * 9000


@pytest.fixture
def job(store: Store, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend, tmp_path: Path) -> Job:
    """One that has succeeded."""
    return succeed(store, spec, reconciler, backend, tmp_path, loss=1.0)


def succeed(
    store: Store, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend, tmp_path: Path, *, loss: float
) -> Job:
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler.reconcile()
    reconciler.reconcile()
    run = RunDirectory(job.run_url)
    prepared = Path(run.prepared_url) / "packed-0123456789abcdef"
    prepared.mkdir(parents=True, exist_ok=True)
    write_lineage(str(prepared), {"version": 1})
    lineage = json.loads((prepared / "lineage.json").read_text())
    (prepared / "lineage.json").write_text(
        json.dumps(lineage | {"hash": "0123456789abcdef", "project": {"sleddog": "0.0.9"}})
    )
    with EventWriter(run, "driver", attempt=1) as events:
        summary = {"hash": "0123456789abcdef"}
        events.emit("stage.finished", stage="prepare", duration_s=1.0, reused=False, summary=summary)
        for when, step in (("after", 8), ("before", 0), ("step-4", 4), ("step-4", 4)):
            events.emit("eval.held_out", stage="evaluate", when=when, step=step, loss={"math": loss + step})
            metrics = {"exact_match": {"score": 0.5, "standard_error": 0.1, "n": 8}}
            events.emit(
                "eval.task", when=when, step=step, task="gsm8k", kind="gsm8k", status="succeeded", reason=None,
                samples=8, verdicts={}, metrics=metrics,
            )  # fmt: skip
            samples = [{"prompt": "Who?", "completion": "I."}]
            events.emit("eval.samples", stage="evaluate", when=when, step=step, samples=samples)
        events.emit("checkpoint.saved", stage="train", step=8, path="attempt-1/00000008-aa")
        events.emit("job.finished")
    write_checkpoint(run, "attempt-1/00000004-aa", 4)
    write_checkpoint(run, "attempt-1/00000008-aa", 8)
    write_checkpoint(run, "attempt-1/00000006-aa", 6, is_whole=False)
    write(run, "exports/attempt-1-aa/model.safetensors", _WEIGHTS)
    write(run, "exports/attempt-1-bb/model.safetensors", b"of a try that was never committed")
    write(run, "exports/attempt-1-aa.json", b"{}")
    write(run, "evals/after.json", b"{}")
    claim_attempt(run, 1)
    claim_start(run, 1)
    run.write_report(
        {
            "data": {"hash": "0123456789abcdef", "sources": [{"name": "sums", "kept": 40}]},
            "train": {"steps": 8, "loss_curve": [[1, loss]]},
            "held_out": {"after": {"math": loss}},
            "export": {"path": run.join("exports"), "environment": {"versions": {"torch": "2.0"}}},
        }
    )
    backend.states[f"{job.id}-a1"] = ("succeeded", "")
    reconciler.reconcile()
    return store.get(Job, job.id)


def write(run: RunDirectory, name: str, content: bytes) -> None:
    path = Path(run.join(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_checkpoint(run: RunDirectory, path: str, step: int, *, is_whole: bool = True) -> None:
    write(run, f"checkpoints/{path}/shard-00000.safetensors", b"x" * 10)
    document = {"state": {"step": step}, "shards": {"shard-00000.safetensors": {"bytes": 10 if is_whole else 11}}}
    write(run, f"checkpoints/{path}/checkpoint.json", json.dumps(document).encode())


def test_whole_checkpoints_are_listed_the_furthest_first(client: Client, job: Job, spec: JobSpec) -> None:
    found = client.jobs.get(job.id).checkpoints()
    assert [(item.step, item.attempt, item.path) for item in found] == [
        (8, 1, "attempt-1/00000008-aa"), (4, 1, "attempt-1/00000004-aa")
    ]  # fmt: skip
    assert found[0].saved_at is not None
    assert found[1].saved_at is None, "its event has not come"
    assert found[0].num_bytes > 10
    assert client.jobs.create(spec).checkpoints() == []


def test_evaluations_are_in_the_order_of_training_and_each_counts_once(client: Client, job: Job) -> None:
    found = client.jobs.get(job.id).evaluations()
    assert [(item.when, item.held_out_loss, len(item.tasks)) for item in found] == [
        ("before", {"math": 1.0}, 1), ("step-4", {"math": 5.0}, 1), ("after", {"math": 9.0}, 1)
    ]  # fmt: skip
    assert found[0].tasks[0].num_samples == 8
    assert found[0].samples == [{"prompt": "Who?", "completion": "I."}]


def test_artifacts_are_what_a_job_leaves_for_people(client: Client, job: Job, http: TestClient) -> None:
    found = {item.path: item.num_bytes for item in client.jobs.artifacts(job.id)}
    assert set(found) == {
        "evals/after.json", "exports/attempt-1-aa.json", "exports/attempt-1-aa/model.safetensors", "report.json"
    }  # fmt: skip
    assert found["exports/attempt-1-aa/model.safetensors"] == len(_WEIGHTS)
    page = http.get(f"/v1/jobs/{job.id}/artifacts?limit=3").json()
    assert page["has_more"]
    rest = http.get(f"/v1/jobs/{job.id}/artifacts", params={"after": page["data"][-1]["path"]}).json()
    assert [item["path"] for item in rest["data"]] == ["report.json"]


@pytest.mark.parametrize(
    "path",
    [
        "spec.json", "events", "checkpoints/attempt-1/00000008-aa/checkpoint.json", "exports", "nothing",
        "exports/attempt-1-bb/model.safetensors", "out", "out/secret", "evals/../spec.json", "..%2F..%2Fsums.jsonl",
        "%2E%2E/%2E%2E/sums.jsonl", "evals//after.json", "evals%5Cafter.json", "%2Fetc%2Fpasswd", "evals/./after.json",
        "evals%00", "",
    ],
)  # fmt: skip
def test_no_path_leads_to_what_is_no_artifact(url: str, key: str, job: Job, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (Path(job.run_url) / "out").symlink_to(tmp_path)
    status, body = raw_get(url, key, f"/v1/jobs/{job.id}/artifacts/{path}")
    assert (status, json.loads(body)["code"]) == (404, "not_found")


def raw_get(url: str, key: str, path: str) -> tuple[int, bytes]:
    """A request whose path is sent as it is: other clients tidy it up first."""
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_a_file_is_sent_whole_or_in_part_and_not_again_to_who_has_it(http: TestClient, job: Job) -> None:
    path = f"/v1/jobs/{job.id}/artifacts/exports/attempt-1-aa/model.safetensors"
    whole = http.get(path)
    assert (whole.status_code, whole.content) == (200, _WEIGHTS)
    assert whole.headers["content-disposition"].endswith("model.safetensors")
    etag = whole.headers["etag"]
    part = http.get(path, headers={"Range": "bytes=10-19", "If-Range": etag})
    assert (part.status_code, part.content) == (206, _WEIGHTS[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(_WEIGHTS)}"
    assert http.get(path, headers={"Range": "bytes=-5"}).content == _WEIGHTS[-5:]
    assert http.get(path, headers={"Range": "bytes=10-19", "If-Range": '"old"'}).status_code == 200
    beyond = http.get(path, headers={"Range": f"bytes={len(_WEIGHTS)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(_WEIGHTS)}")
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304


@given(st.text(alphabet="bytes=-,0123456789 ", max_size=20), st.integers(0, 50))
def test_a_range_is_within_the_file_or_nothing(header: str, num_bytes: int) -> None:
    found = parse_range(header, num_bytes)
    assert found is None or 0 <= found[0] <= found[1] <= num_bytes


def test_a_download_that_breaks_off_goes_on_with_the_rest(
    url: str, key: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "retry_delay_s", lambda _retry: 0.0)
    asked: list[str | None] = []

    class Breaking(httpx.HTTPTransport):
        """The real way to the service, which loses the first connections after one part."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request.headers.get("range"))
            answer = super().handle_request(request)
            if len(asked) > 2:
                return answer
            return httpx.Response(answer.status_code, headers=answer.headers, stream=Torn(answer))

    class Torn(httpx.SyncByteStream):
        def __init__(self, response: httpx.Response) -> None:
            self.response = response

        def __iter__(self) -> Iterator[bytes]:
            assert isinstance(self.response.stream, httpx.SyncByteStream)
            yield next(iter(self.response.stream))[:1000]
            raise httpx.ReadError("torn")

        def close(self) -> None:
            self.response.close()

    with Client(url, key, transport=Breaking()) as client:
        path = client.jobs.download(job.id, "exports/attempt-1-aa/model.safetensors", tmp_path / "got" / "model")
    assert path.read_bytes() == _WEIGHTS
    assert asked == [None, "bytes=1000-", "bytes=2000-"]
    assert [item.name for item in path.parent.iterdir()] == ["model"]


def test_what_would_be_accepted_is_told_and_nothing_is_stored(
    client: Client, spec: JobSpec, backend: RecordingBackend, tmp_path: Path
) -> None:
    answer = client.jobs.validate(spec)
    assert (answer.spec, answer.spec_sha256) == (spec, spec.sha256())
    [found] = answer.files
    size = (tmp_path / "sums.jsonl").stat().st_size
    assert (found.field, found.status, found.num_files, found.num_bytes) == ("data.sources.0.uri", "found", 1, size)
    backend.shares_filesystem = False
    assert [item.status for item in client.jobs.validate(spec).files] == ["not_checked"]
    backend.shares_filesystem = True
    (tmp_path / "sums.jsonl").unlink()
    with pytest.raises(SourceNotFoundError):
        client.jobs.validate(spec)
    assert client.jobs.list().data == []


def test_presets_have_their_parameter_counts(client: Client) -> None:
    found = {item.name: item for item in client.presets()}
    assert set(found) == set(PRESETS)
    assert found["arctic-480b"].num_params == PRESETS["arctic-480b"].num_params() > 4e11
    assert found["arctic-480b"].config["num_experts"] == 128


def test_jobs_are_told_apart_by_spec_data_and_results(
    client: Client,
    store: Store,
    spec: JobSpec,
    job: Job,
    reconciler: Reconciler,
    backend: RecordingBackend,
    tmp_path: Path,
) -> None:
    other = succeed(store, spec.model_copy(update={"seed": 3}), reconciler, backend, tmp_path, loss=0.75)
    found = client.jobs.diff(job.id, other.id)
    assert [(item.path, item.left, item.right, item.change) for item in found.spec] == [("seed", 0, 3, 3.0)]
    assert found.data == []
    assert [(item.path, item.change) for item in found.results] == [("held_out.after.math", -0.25)]
    unfinished = client.jobs.create(spec)
    found = client.jobs.diff(job.id, unfinished.id)
    assert (found.data, found.results) == ([], [])
    assert unfinished.id in found.notes[0]
    assert client.jobs.diff(job.id, job.id).spec == []


def test_a_source_put_in_between_is_the_only_one_that_differs() -> None:
    left = {"sources": [{"name": "a", "rows": 1}, {"name": "c", "rows": 3}], "empty": [], "same": None}
    right = {"sources": [{"name": "a", "rows": 1}, {"name": "b", "rows": 2}, {"name": "c", "rows": 3}], "empty": [1]}
    assert {item.path for item in differences(left, right)} == {"sources.b.name", "sources.b.rows", "empty", "empty.0"}


def test_a_job_is_reproduced_with_its_data_pinned_and_what_is_otherwise_told(
    client: Client, store: Store, job: Job, spec: JobSpec
) -> None:
    with store._transaction() as session:
        row = session.get_one(JobRow, job.id)
        row.spec = {**row.spec, "data": {key: value for key, value in row.spec["data"].items() if key != "leave_out"}}
    found = client.jobs.get(job.id).reproduce()
    assert found.prepared_hash == found.spec.data.expected_hash == "0123456789abcdef"
    assert found.seeds == {"job": 0, "data": 0}
    assert (found.versions["torch"], found.versions["sleddog"]) == ("2.0", "0.0.9")
    assert any("sleddog 0.0.9" in text for text in found.differences)
    assert any(text.startswith("data.leave_out was not there") for text in found.differences)
    again = client.jobs.create(found.spec)
    assert again.spec["data"]["expected_hash"] == "0123456789abcdef"  # type: ignore[index,call-overload]
    assert client.jobs.create(spec).reproduce().prepared_hash is None
    with store._transaction() as session:
        session.get_one(JobRow, job.id).spec = {**job.spec, "retired": 1}
    with pytest.raises(ConflictError, match="retired: unknown field"):
        client.jobs.reproduce(job.id)


def test_other_data_than_is_required_ends_a_job() -> None:
    require_expected(None, "b" * 16)
    require_expected("b" * 16, "b" * 16)
    with pytest.raises(DataChangedError, match=r"^data\.expected_hash: the data is b+, not a+"):
        require_expected("a" * 16, "b" * 16)


def test_the_awaited_client_gets_the_same(url: str, key: str, client: Client, job: Job, tmp_path: Path) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(url, key) as awaited:
            jobs = awaited.jobs
            path = await jobs.download(job.id, "report.json", tmp_path / "report")
            return [
                await jobs.checkpoints(job.id),
                await jobs.evaluations(job.id),
                [item async for item in jobs.artifacts(job.id)],
                await jobs.diff(job.id, job.id),
                await jobs.reproduce(job.id),
                await awaited.presets(),
                json.loads(path.read_text()),
            ]

    jobs = client.jobs
    assert asyncio.run(ask()) == [
        jobs.checkpoints(job.id), jobs.evaluations(job.id), list(jobs.artifacts(job.id)), jobs.diff(job.id, job.id),
        jobs.reproduce(job.id), client.presets(), jobs.report(job.id),
    ]  # fmt: skip


@pytest.mark.usefixtures("apart")
def test_the_command_line_shows_what_came_of_a_job(
    url: str, key: str, job: Job, job_document: dict[str, Any], tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--url", url, "--api-key", key])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(run("checkpoints", job.id, "--json"))[0]["step"] == 8
    assert "attempt-1/00000008-aa" in run("checkpoints", job.id)
    assert len(json.loads(run("evaluations", job.id, "--json"))) == 3
    assert "exact_match" in run("evaluations", job.id)
    assert "report.json" in run("artifacts", job.id)
    assert len(json.loads(run("artifacts", job.id, "--json"))) == 4
    written = json.loads(run("download", job.id, "exports/attempt-1-aa", "-o", str(tmp_path / "mine"), "--json"))
    assert str(tmp_path / "mine" / "exports" / "attempt-1-aa" / "model.safetensors") in written
    assert (tmp_path / "mine" / "exports" / "attempt-1-aa" / "model.safetensors").read_bytes() == _WEIGHTS
    assert CliRunner().invoke(app, ["download", job.id, "no", "--url", url, "--api-key", key]).exit_code == 1
    assert json.loads(run("diff", job.id, job.id, "--json"))["spec"] == []
    assert JobSpec.model_validate_json(run("reproduce", job.id)).data.expected_hash == "0123456789abcdef"
    assert "arctic-480b" in run("presets")
    (tmp_path / "job.json").write_text(json.dumps(job_document))
    assert json.loads(run("validate", "job.json", "--remote"))["files"][0]["status"] == "found"


def test_unknown_jobs_have_left_nothing(client: Client, job: Job) -> None:
    for ask in (client.jobs.checkpoints, client.jobs.evaluations, client.jobs.reproduce):
        with pytest.raises(NotFoundError, match="no job 'job-0'"):
            ask("job-0")
    with pytest.raises(NotFoundError, match="no job 'job-0'"):
        client.jobs.diff(job.id, "job-0")
