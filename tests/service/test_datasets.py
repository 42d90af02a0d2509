"""Datasets through the real application over a real socket: uploads, verdicts, and jobs that read them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from ray_jobs.run_directory import RunDirectory
from service.client import dataset_calls
from service.client.client import AsyncClient, Client
from service.client.upload import missing_parts
from service.datasets.datasets import Datasets
from service.errors import ConflictError, InvalidDatasetError, InvalidSpecError, NotFoundError, SourceNotFoundError
from service.reconcile import Reconciler
from service.spec.access import NewProject
from service.spec.dataset import Dataset, DatasetSpec
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.principal import Principal
from tests.conftest import write_rows
from tests.service.recording_backend import RecordingBackend

CHATS = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(100)
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chats.jsonl", CHATS)


@pytest.fixture
def ready(client: Client, chats: Path, working: None) -> Dataset:
    return client.datasets.upload(chats)


def content_of(datasets: Datasets, dataset: Dataset) -> Path:
    return Path(datasets.files.content_url(dataset.id, "content.jsonl"))


def test_a_file_arrives_in_parallel_parts_as_it_is(
    client: Client, datasets: Datasets, chats: Path, working: None
) -> None:
    told: list[tuple[int, int]] = []
    dataset = client.datasets.upload(chats, part_bytes=1000, progress=lambda done, total: told.append((done, total)))
    size = chats.stat().st_size
    assert (dataset.status, dataset.name, dataset.num_bytes) == ("ready", "chats.jsonl", size)
    assert (dataset.num_parts, dataset.part_bytes, dataset.format) == (-(-size // 1000), 1000, "jsonl")
    assert dataset.sha256 == hashlib.sha256(chats.read_bytes()).hexdigest()
    assert dataset.decompressed_bytes == size
    assert content_of(datasets, dataset).read_bytes() == chats.read_bytes()
    assert not (content_of(datasets, dataset).parent / "parts").exists()
    assert told[-1] == (size, size)
    assert len(told) == dataset.num_parts
    assert [item.id for item in client.datasets.list().data] == [dataset.id]
    assert client.datasets.get(dataset.id) == dataset


def test_a_broken_upload_goes_on_with_what_is_missing(
    url: str, key: str, client: Client, chats: Path, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    put_part = dataset_calls.put_part

    def breaking(dataset_id: str, number: int, content: bytes) -> Any:
        if number == 5:
            raise OSError("the cable was pulled")
        return put_part(dataset_id, number, content)

    def counting(dataset_id: str, number: int, content: bytes) -> Any:
        sent.append(number)
        return put_part(dataset_id, number, content)

    monkeypatch.setattr(dataset_calls, "put_part", breaking)
    with pytest.raises(OSError, match="cable"):
        client.datasets.upload(chats, part_bytes=1000)
    [broken] = client.datasets.list(statuses=["uploading"]).data
    arrived = {part.number for part in client.send(dataset_calls.list_parts(broken.id)).data}
    assert 5 not in arrived
    assert arrived
    monkeypatch.setattr(dataset_calls, "put_part", counting)
    with Client(url, key) as another:
        dataset = another.datasets.upload(chats, part_bytes=1000)
    assert (dataset.id, dataset.status) == (broken.id, "ready")
    assert sorted(sent) == sorted(set(range(1, dataset.num_parts + 1)) - arrived)
    assert client.datasets.upload(chats, part_bytes=1000).id == dataset.id, "the same file is the same dataset"


def test_a_part_that_the_file_has_otherwise_by_now_is_sent_again(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a" * 10)
    dataset = client.send(dataset_calls.create(DatasetSpec(name="a.jsonl", num_bytes=10, part_bytes=5), "k"))
    for number in (1, 2):
        client.send(dataset_calls.put_part(dataset.id, number, b"a" * 5))
    arrived = client.send(dataset_calls.list_parts(dataset.id)).data
    assert missing_parts(path, dataset, arrived) == []
    path.write_bytes(b"a" * 5 + b"b" * 5)
    assert missing_parts(path, dataset, arrived) == [2]
    path.write_bytes(b"a")
    with pytest.raises(InvalidDatasetError, match="not of the 10 bytes"):
        missing_parts(path, dataset, arrived)


def test_the_awaited_client_does_the_same(url: str, key: str, client: Client, chats: Path, working: None) -> None:
    async def use() -> Any:
        async with AsyncClient(url, key) as awaited:
            dataset = await awaited.datasets.upload(chats, part_bytes=3000)
            verdict = await awaited.datasets.validate(dataset.id)
            statistics = await awaited.datasets.statistics(dataset.id)
            preview = await awaited.datasets.preview(dataset.id, limit=2)
            page = await awaited.datasets.list()
            await awaited.datasets.delete(dataset.id)
            return dataset, verdict, statistics, preview, page

    dataset, verdict, statistics, preview, page = asyncio.run(use())
    assert (dataset.status, verdict.is_valid, statistics.num_turns, len(preview.rows)) == ("ready", True, 200, 2)
    assert [item.id for item in page.data] == [dataset.id]
    assert client.datasets.list().data == []
    names = [{name for name in dir(owner.datasets) if name[0] != "_"} for owner in (client, AsyncClient(url, key))]
    assert names[0] == names[1]


def put(http: TestClient, dataset_id: str, number: int, content: bytes, hashed: bytes | None = None) -> httpx.Response:
    digest = base64.b64encode(hashlib.sha256(content if hashed is None else hashed).digest()).decode()
    headers = {"Content-Digest": f"sha-256=:{digest}:"}
    return http.put(f"/v1/datasets/{dataset_id}/parts/{number}", content=content, headers=headers)


def create(http: TestClient, **fields: Any) -> Any:
    answer = http.post("/v1/datasets", json={"name": "a.jsonl", "num_bytes": 10, "part_bytes": 5} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_only_whole_parts_with_the_right_hash_are_taken(http: TestClient) -> None:
    dataset = create(http)
    for number, content, hashed, reason in [
        (1, b"12345", b"12346", "arrived with SHA-256 "),
        (1, b"1234", None, "has 4 bytes, and must have 5"),
        (2, b"123456", None, "has 6 bytes, and must have 5"),
        (3, b"12345", None, "has parts 1 to 2"),
    ]:
        answer = put(http, dataset["id"], number, content, hashed)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_dataset")
        assert reason in answer.json()["detail"]
    answer = http.put(f"/v1/datasets/{dataset['id']}/parts/1", content=b"12345", headers={"Content-Digest": "md5=:x:"})
    assert answer.json()["errors"][0]["field"] == "Content-Digest"
    assert http.get(f"/v1/datasets/{dataset['id']}/parts").json()["data"] == []
    assert put(http, "ds-0", 1, b"12345").status_code == 404


def test_a_part_larger_than_any_is_not_read_to_its_end(http: TestClient, datasets: Datasets) -> None:
    dataset = create(http)
    answer = put(http, dataset["id"], 1, b"0" * (datasets.limits.max_part_bytes + 1))
    assert (answer.status_code, "at most" in answer.json()["detail"]) == (422, True)


def test_a_part_that_breaks_off_is_no_part_and_no_fault_of_the_service(
    url: str, key: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = client.send(dataset_calls.create(DatasetSpec(name="a.jsonl", num_bytes=10_000), "k"))
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as connection:
        head = [
            f"PUT /v1/datasets/{dataset.id}/parts/1 HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {key}",
            f"Content-Digest: sha-256=:{'A' * 43}=:",
            "Content-Length: 10000",
        ]
        connection.sendall("\r\n".join([*head, "", "only this"]).encode())
        time.sleep(0.5)
    time.sleep(0.5)
    assert client.send(dataset_calls.list_parts(dataset.id)).data == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_whole_file_with_another_hash_is_rejected(http: TestClient, client: Client, datasets: Datasets) -> None:
    dataset = create(http)
    url = f"/v1/datasets/{dataset['id']}/complete"
    put(http, dataset["id"], 2, b"67890")
    answer = http.post(url, json={"sha256": "0" * 64})
    assert (answer.status_code, answer.json()["detail"]) == (409, "1 of 2 parts are missing: 1")
    put(http, dataset["id"], 1, b"12345")
    assert http.post(url, json={"sha256": "0" * 64}).json()["status"] == "verifying"
    assert http.post(url, json={"sha256": "0" * 64}).status_code == 202, "completing twice is no error"
    assert http.post(url, json={"sha256": "1" * 64}).status_code == 409
    assert put(http, dataset["id"], 1, b"54321").status_code == 409, "a completed dataset never changes"
    datasets.worker.work()
    found = client.datasets.get(dataset["id"])
    assert found.status == "rejected"
    assert found.error is not None
    assert (found.error.code, found.error.field) == ("invalid_dataset", None)
    assert "the parts together have SHA-256" in found.error.message
    assert not list(Path(datasets.files.root, found.id).glob("*")), "nothing of it is kept"
    with pytest.raises(InvalidDatasetError, match="parts together"):
        client.datasets.wait(found.id)
    with pytest.raises(ConflictError, match="upload it anew"):
        client.datasets.preview(found.id)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"num_bytes": 10_000_001}, "num_bytes"),
        ({"num_bytes": 0}, "num_bytes"),
        ({"part_bytes": 2**27}, "part_bytes"),
        ({"num_bytes": 50_000, "part_bytes": 1}, "part_bytes"),
        ({"name": "a.zip"}, "name"),
        ({"name": "a.tar.gz"}, "format"),
        ({"name": "a"}, "format"),
        ({"name": "a\0.jsonl"}, "name"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_a_byte_is_sent(
    http: TestClient, fields: dict[str, Any], field: str
) -> None:
    answer = http.post("/v1/datasets", json={"name": "a.jsonl", "num_bytes": 10} | fields)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_no_name_leads_out_of_the_datasets_directory(http: TestClient, datasets: Datasets) -> None:
    dataset = create(http, name="../../../etc/passwd.jsonl", num_bytes=5)
    put(http, dataset["id"], 1, b"12345")
    http.post(f"/v1/datasets/{dataset['id']}/complete", json={"sha256": hashlib.sha256(b"12345").hexdigest()})
    datasets.worker.work()
    written = [path for path in Path(datasets.files.root).rglob("*") if path.is_file()]
    assert [path.name for path in written] == ["content.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bomb.jsonl.gz", gzip.compress(b"0" * 100_000_000), "bytes expand to"),
        ("torn.jsonl.gz", gzip.compress(b"0123456789" * 1000, mtime=0)[:-10], "cannot be read: Compressed file ended"),
        ("torn.parquet", b"PAR1 no more", "cannot be read"),
    ],
)
def test_what_expands_too_far_or_is_torn_is_rejected(
    client: Client, tmp_path: Path, working: None, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidDatasetError, match=reason):
        client.datasets.upload(tmp_path / name)


def test_a_parquet_bomb_is_rejected(client: Client, tmp_path: Path, working: None) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"messages": ["0" * 100_000_000]}), path, compression="zstd")
    with pytest.raises(InvalidDatasetError, match="bytes expand to"):
        client.datasets.upload(path)


def test_a_compressed_file_is_measured_and_read(client: Client, tmp_path: Path, working: None) -> None:
    lines = "".join(json.dumps(chat) + "\n" for chat in CHATS).encode()
    (tmp_path / "chats.jsonl.gz").write_bytes(gzip.compress(lines))
    dataset = client.datasets.upload(tmp_path / "chats.jsonl.gz")
    assert dataset.decompressed_bytes == len(lines)
    assert client.datasets.validate(dataset.id).num_conversations == 100


def test_every_row_is_judged_as_a_job_would(client: Client, tmp_path: Path, working: None) -> None:
    rows = [*CHATS[:3], {"messages": []}, CHATS[0], {"prompt": "x"}, {"messages": []}]
    dataset = client.datasets.upload(write_rows(tmp_path / "odd.jsonl", rows))
    verdict = client.datasets.validate(dataset.id)
    assert (verdict.is_valid, verdict.num_rows, verdict.num_conversations, verdict.num_rejected) == (False, 7, 4, 3)
    assert [(row.row, row.reason) for row in verdict.rejected] == [
        (4, "'messages' is no list of turns"),
        (6, "no field 'messages'"),
        (7, "'messages' is no list of turns"),
    ]
    assert verdict.rejected[1].excerpt == '{"prompt": "x"}'
    assert [(count.reason, count.num_rows) for count in verdict.reasons] == [
        ("'messages' is no list of turns", 2),
        ("no field 'messages'", 1),
    ]
    assert client.datasets.validate(dataset.id, form="alpaca").num_conversations == 0, "another form, another verdict"


def test_statistics_count_what_is_there(client: Client, tmp_path: Path, working: None) -> None:
    system = {"role": "system", "content": "äö"}
    long = {"messages": [system, {"role": "user", "content": "q"}, {"role": "assistant", "content": "12345678"}]}
    short = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    dataset = client.datasets.upload(write_rows(tmp_path / "few.jsonl", [long, short, short, {"x": 1}]))
    found = client.datasets.statistics(dataset.id)
    assert (found.num_rows, found.num_conversations, found.num_turns) == (4, 3, 7)
    assert found.turns_by_role == {"assistant": 3, "system": 1, "user": 3}
    assert (found.num_characters, found.num_trained_characters, found.longest_characters) == (15, 10, 11)
    assert (found.num_distinct, found.num_duplicates, found.mean_characters) == (2, 1, 5.0)
    assert [(bucket.start, bucket.end, bucket.count) for bucket in found.characters] == [
        (2, 3, 2),
        (4, 7, 0),
        (8, 15, 1),
    ]
    assert [(bucket.start, bucket.end, bucket.count) for bucket in found.turns] == [(2, 3, 3)]


def test_a_pass_is_made_once(
    client: Client, datasets: Datasets, ready: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = client.datasets.validate(ready.id)
    content_of(datasets, ready).unlink()
    assert client.datasets.validate(ready.id) == verdict
    assert client.datasets.statistics(ready.id).num_conversations == 100


def test_a_preview_shows_what_is_trained(client: Client, tmp_path: Path, working: None) -> None:
    dataset = client.datasets.upload(write_rows(tmp_path / "some.jsonl", [*CHATS[:2], {"x": 1}, *CHATS[3:]]))
    page = client.datasets.preview(dataset.id, start=2, limit=2, system_prompt="Be brief.")
    assert [row.row for row in page.rows] == [2, 3]
    assert page.has_more
    assert [(piece.text, piece.is_trained) for piece in page.rows[0].segments] == [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("It is 1.<|im_end|>", True),
        ("\n", False),
    ]
    assert (page.rows[1].segments, page.rows[1].reason) == ([], "no field 'messages'")
    assert not client.datasets.preview(dataset.id, start=99).has_more


def test_a_file_that_eats_memory_ends_its_reader_alone(
    client: Client, datasets: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, working: None
) -> None:
    (tmp_path / "wide.jsonl").write_text(json.dumps({"messages": [[]] * 1_000_000}) + "\n")
    dataset = client.datasets.upload(tmp_path / "wide.jsonl")
    object.__setattr__(datasets.limits, "memory_bytes", 2**28)
    with pytest.raises(InvalidDatasetError, match="the process that reads the file ended"):
        client.datasets.validate(dataset.id)
    assert client.health().status == "ok"


def reading(job_document: dict[str, Any], dataset: Dataset) -> JobSpec:
    job_document["data"]["sources"][0] |= {"uri": dataset.uri, "form": "messages"}
    return JobSpec.model_validate(job_document)


def test_a_job_reads_a_dataset_by_its_id(
    client: Client,
    datasets: Datasets,
    ready: Dataset,
    job_document: dict[str, Any],
    reconciler: Reconciler,
    backend: RecordingBackend,
) -> None:
    job = client.jobs.create(reading(job_document, ready))
    assert job.spec["data"]["sources"][0]["uri"] == ready.uri, "the stored spec stays as asked"  # type: ignore[index,call-overload]
    for _ in range(2):
        reconciler.reconcile()
    assert backend.submitted == [f"{job.id}-a1"]
    [source] = RunDirectory(job.run_url).read_spec().data.sources
    assert source.uri == f"file://{content_of(datasets, ready)}"  # type: ignore[union-attr]
    with pytest.raises(ConflictError, match=f"{job.id} reads it and has not ended"):
        client.datasets.delete(ready.id)
    client.jobs.cancel(job.id)
    backend.states[f"{job.id}-a1"] = ("stopped", "")
    reconciler.reconcile()
    client.datasets.delete(ready.id)
    datasets.worker.work()
    assert not content_of(datasets, ready).parent.exists()
    with pytest.raises(NotFoundError):
        client.datasets.get(ready.id)
    assert client.datasets.list().data == []


def test_a_job_that_is_resumed_when_its_dataset_has_gone_says_so(
    client: Client, ready: Dataset, job_document: dict[str, Any], reconciler: Reconciler
) -> None:
    job = client.jobs.create(reading(job_document, ready))
    client.jobs.cancel(job.id)
    client.datasets.delete(ready.id)
    client.jobs.resume(job.id)
    for _ in range(2):
        reconciler.reconcile()
    found = client.jobs.get(job.id)
    assert found.error is not None
    assert (found.status, found.error.code, found.error.fault) == ("failed", "source_not_found", "user")
    assert ready.id in found.error.message


def test_a_job_is_refused_whose_dataset_is_not_there(
    client: Client, http: TestClient, ready: Dataset, job_document: dict[str, Any]
) -> None:
    spec = reading(job_document, ready)
    client.datasets.delete(ready.id)
    with pytest.raises(SourceNotFoundError) as caught:
        client.jobs.create(spec)
    assert caught.value.field == "data.sources.0.uri"
    begun = Dataset.model_validate(create(http))
    with pytest.raises(ConflictError, match="complete its upload first"):
        client.jobs.create(reading(job_document, begun))
    assert client.jobs.list().data == []


def test_a_reference_is_an_id_and_nothing_else(job_document: dict[str, Any]) -> None:
    job_document["data"]["sources"][0]["uri"] = "dataset://../other"
    with pytest.raises(ValueError, match="no dataset's id"):
        JobSpec.model_validate(job_document)


def test_work_of_a_process_that_died_is_taken_up(http: TestClient, client: Client, datasets: Datasets) -> None:
    dataset = create(http, num_bytes=5)
    put(http, dataset["id"], 1, b"12345")
    http.post(f"/v1/datasets/{dataset['id']}/complete", json={"sha256": hashlib.sha256(b"12345").hexdigest()})
    lost = datasets.store.claim_verification(lease_s=-1)
    assert lost is not None
    assert datasets.store.claim_verification(lease_s=60) is not None, "the claim has run out"
    assert datasets.store.claim_verification(lease_s=60) is None, "this one has not"
    assert datasets.store.hold(lost, lease_s=60) is None
    assert not datasets.store.finish_verification(lost, decompressed_bytes=5, error=None)
    assert client.datasets.get(dataset["id"]).status == "verifying"


def test_an_upload_that_nobody_completes_is_removed(http: TestClient, client: Client, datasets: Datasets) -> None:
    dataset = create(http)
    put(http, dataset["id"], 1, b"12345")
    object.__setattr__(datasets.limits, "upload_expiry_s", 0.0)
    datasets.worker.work()
    assert client.datasets.list().data == []
    assert not Path(datasets.files.root, dataset["id"]).exists()


def test_a_dataset_is_its_projects_own(
    client: Client, datasets: Datasets, key: str, ready: Dataset, job_document: dict[str, Any]
) -> None:
    datasets.store.of(datasets.store.authenticate(key)).create_project(NewProject(id="other"))
    stranger = datasets.store.of(Principal("k", "eve", "other", "admin", frozenset({"read", "write", "admin"})))
    assert stranger.list_datasets() == ([], False)
    for ask in (stranger.get_dataset, stranger.delete_dataset, stranger.list_parts):
        with pytest.raises(NotFoundError):
            ask(ready.id)
    with pytest.raises(SourceNotFoundError):
        stranger.create(Job, reading(job_document, ready), "/runs")
    assert client.datasets.get(ready.id) == ready


def test_a_list_is_read_page_by_page(client: Client, http: TestClient) -> None:
    ids = [create(http)["id"] for _ in range(3)]
    first = client.datasets.list(limit=2)
    assert first.has_more
    rest = client.datasets.list(after=first.data[-1].id)
    assert [item.id for item in [*first.data, *rest.data]] == ids[::-1]
    with pytest.raises(InvalidSpecError, match="limit"):
        client.datasets.list(limit=0)
