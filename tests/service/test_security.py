"""What a service holds off: too many requests, too large ones, specs that reach too far, and its own secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select
from starlette.types import Message

from service.api.app import MAX_BODY_BYTES, create_app
from service.api.dependencies import ControlPlane
from service.api.rate_limit import RateLimiter
from service.api.server import Server
from service.errors import InvalidSpecError, RateLimitedError
from service.reconcile import Reconciler
from service.spec.resources import Job
from service.store.models import Base
from service.store.store import Store
from service.uri_policy import UriPolicy
from tests.service.recording_backend import RecordingBackend

CANARY = "sd-000000000000-" + "canary-" * 6 + "x"


def client_of(parts: ControlPlane, key: str) -> TestClient:
    return TestClient(create_app(parts), headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False)


def changed(parts: ControlPlane, **fields: Any) -> ControlPlane:
    return ControlPlane(parts.store, parts.backend, parts.reconciler, parts.runs_url, parts.datasets, **fields)


def test_a_bucket_fills_at_its_rate_and_no_further() -> None:
    time = [0.0]
    limiter = RateLimiter(2.0, 4.0, now=lambda: time[0])
    for _ in range(4):
        limiter.take("a")
    with pytest.raises(RateLimitedError) as caught:
        limiter.take("a")
    assert caught.value.retry_after_s == 0.5
    limiter.take("b")
    time[0] = 0.5
    limiter.take("a")
    time[0] = 1000.0
    for _ in range(4):
        limiter.take("a")
    with pytest.raises(RateLimitedError):
        limiter.take("a")


def test_many_names_do_not_fill_the_memory() -> None:
    limiter = RateLimiter(0.001, 1.0, now=lambda: 0.0)
    for number in range(30_000):
        limiter.take(str(number))
    assert len(limiter._buckets) <= 10_000
    with pytest.raises(RateLimitedError):
        limiter.take("29999")


def test_a_key_that_asks_too_often_is_told_when_to_come_again(parts: ControlPlane, key: str) -> None:
    http = client_of(changed(parts, rate_limit_per_s=0.5), key)
    assert http.get("/v1/me").status_code == 200
    answer = http.get("/v1/me")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "rate_limited", "2")
    other = parts.store.of(parts.store.authenticate(key))
    assert [entry.code for entry in other.list_audit()[0]] == [], "the record does not grow by it"


def test_who_tries_keys_is_held_off(parts: ControlPlane, key: str) -> None:
    wrong = client_of(parts, "sd-wrong")
    statuses = [wrong.get("/v1/me").status_code for _ in range(70)]
    assert statuses[:60] == [401] * 60
    assert 429 in statuses
    assert client_of(parts, key).get("/v1/me").status_code == 200, "a valid key from there is served still"


def test_a_body_that_is_too_large_is_refused(http: TestClient, job_document: dict[str, Any]) -> None:
    large = json.dumps(job_document | {"name": "x" * MAX_BODY_BYTES})
    answers = [
        http.post("/v1/jobs", content=large, headers={"Content-Type": "application/json"}),
        http.post("/v1/jobs", content=iter([large.encode()]), headers={"Content-Type": "application/json"}),
    ]
    assert [answer.status_code for answer in answers] == [413, 413]
    assert http.get("/v1/jobs").json()["data"] == []


def test_no_body_is_read_before_its_sender_is_known(app: FastAPI) -> None:
    takes_body = [
        (method.upper(), re.sub(r"{\w+}", "1", path))
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]
    for method, path in takes_body:
        status, was_read = asyncio.run(answer_to(app, method, path))
        assert (status, was_read) == (401, False), (method, path)
    assert len(takes_body) > 15
    assert asyncio.run(answer_to(app, "POST", "/nothing")) == (404, False), "what has no body to read tells no more"


async def answer_to(app: FastAPI, method: str, path: str) -> tuple[int, bool]:
    """The status that a stranger gets, and whether the body was read for it."""
    was_read, statuses = False, []

    async def receive() -> Message:
        nonlocal was_read
        was_read = True
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer sd-wrong")]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "client": ("192.0.2.1", 1), "server": ("here", 80)}
    await app(scope | {"scheme": "http", "root_path": "", "http_version": "1.1"}, receive, send)
    return statuses[0], was_read


def test_answers_tell_browsers_to_be_careful(http: TestClient) -> None:
    for path in ("/v1/jobs", "/v1/nothing", "/healthz"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "private, no-cache"
        assert "strict-transport-security" not in headers, "only over TLS"
    assert "default-src 'none'" in http.get("/").headers["content-security-policy"]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-days", "1", "-keyout", key, "-out", cert, *subject], check=True, capture_output=True)
    return cert, key


def test_the_service_speaks_tls(parts: ControlPlane, key: str, certificate: tuple[Path, Path]) -> None:
    from service.serve import _tls_options

    config = uvicorn.Config(create_app(parts), port=0, lifespan="off", log_level="warning", **_tls_options(certificate))
    server = Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    with httpx.Client(verify=trusted, trust_env=False) as http:
        answer = http.get(f"https://localhost:{port}/v1/me", headers={"Authorization": f"Bearer {key}"})
    server.should_exit = True
    thread.join()
    assert answer.json()["user"] == "admin"
    assert answer.headers["strict-transport-security"].startswith("max-age=")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An allowed directory beside one that is not, and a link from one to the other."""
    for name in ("ours", "ours-too", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("{}")
    (tmp_path / "ours" / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "ours" / "linked.jsonl").symlink_to(tmp_path / "theirs" / "rows.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "is_allowed"),
    [
        ("file://{}/ours/rows.jsonl", True),
        ("{}/ours/rows.jsonl", True),
        ("file://{}/ours/r*.jsonl", True),
        ("s3://our-data/a/*.jsonl", True),
        ("file://{}/theirs/rows.jsonl", False),
        ("file://{}/ours-too/rows.jsonl", False),
        ("file://{}/ours/../theirs/rows.jsonl", False),
        ("file://{}/ours/%2e%2e/theirs/rows.jsonl", False),
        ("file://{}/ours/link/rows.jsonl", False),
        ("file://{}/ours/link/*.jsonl", False),
        ("file://{}/ours/*.jsonl", False),
        ("file://{}/*/rows.jsonl", False),
        ("file:///etc/passwd", False),
        ("s3://our-data-too/a.jsonl", False),
        ("s3://our-data/../theirs/a.jsonl", False),
        ("s3://our-data/a::file:///etc/passwd", False),
        ("gs://our-data/a.jsonl", False),
    ],
)
def test_specs_read_only_below_what_is_allowed(data: Path, uri: str, is_allowed: bool) -> None:
    policy = UriPolicy((f"file://{data}/ours", "s3://our-data/"))
    document = {"data": {"sources": [{"uri": uri.format(data)}]}}
    if is_allowed:
        policy.require_allowed(document)
        return
    with pytest.raises(InvalidSpecError) as caught:
        policy.require_allowed(document)
    assert caught.value.field == "data.sources.0.uri"


@pytest.mark.parametrize("field", ["model.base.path", "model.tokenizer.path", "evaluate.tasks.0.uri"])
def test_all_that_a_spec_opens_is_looked_at(
    parts: ControlPlane, key: str, job_document: dict[str, Any], tmp_path: Path, field: str
) -> None:
    http = client_of(changed(parts, uri_policy=UriPolicy((f"file://{tmp_path}/",))), key)
    job_document["evaluate"]["tasks"] = [{"kind": "gsm8k", "uri": f"file://{tmp_path}/sums.jsonl"}]
    assert http.post("/v1/jobs", json=job_document).status_code == 201
    if field == "model.base.path":
        job_document["model"] = {"base": "/etc"}
    elif field == "model.tokenizer.path":
        job_document["model"]["tokenizer"] = {"kind": "pretrained", "path": "/etc"}
    else:
        job_document["evaluate"]["tasks"][0]["uri"] = "file:///etc/passwd"
    answer = http.post("/v1/jobs", json=job_document)
    assert answer.status_code == 422
    assert (answer.json()["errors"][0]["field"], "is not below" in answer.text) == (field, True)


def test_a_checkpoint_outside_is_not_registered(parts: ControlPlane, key: str, tmp_path: Path) -> None:
    http = client_of(changed(parts, uri_policy=UriPolicy((f"file://{tmp_path}/",))), key)
    assert http.post("/v1/models", json={"name": "ours", "uri": str(tmp_path / "base")}).status_code == 201
    answer = http.post("/v1/models", json={"name": "theirs", "uri": "/etc"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "uri")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://10.1.2.3/v1", "http://[::ffff:10.0.0.1]/v1"])
def test_endpoints_in_private_networks_are_refused_unless_allowed(url: str) -> None:
    document = {"evaluate": {"judge": {"base_url": url}}}
    UriPolicy(allow_private=True).require_allowed(document)
    with pytest.raises(InvalidSpecError, match=r"^evaluate\.judge\.base_url: leads into a private network"):
        UriPolicy(allow_private=False).require_allowed(document)


@pytest.mark.parametrize("allow_private", [True, False])
@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/meta-data", "http://[fe80::1]/"])
def test_a_clouds_metadata_is_refused_in_any_case(url: str, allow_private: bool) -> None:
    with pytest.raises(InvalidSpecError, match="link-local"):
        UriPolicy(allow_private=allow_private).require_allowed({"track": {"mlflow": {"tracking_uri": url}}})


def test_no_secret_gets_into_events_errors_logs_or_the_store(
    parts: ControlPlane,
    http: TestClient,
    store: Store,
    backend: RecordingBackend,
    reconciler: Reconciler,
    job_document: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key that is used for everything that can go wrong; it must turn up nowhere."""
    caplog.set_level(logging.DEBUG)
    made = http.post("/v1/keys", json={"name": "canary"}).json()
    secret = made["secret"].split("-", 2)[2]
    mine = client_of(parts, made["secret"])
    answers = [
        mine.post("/v1/jobs", json=job_document),
        mine.post("/v1/jobs", json=job_document | {"seed": -1}),
        mine.get("/v1/keys"),
        mine.get("/v1/jobs/job-0"),
        client_of(parts, made["secret"] + "x").get("/v1/me"),
        client_of(parts, CANARY).get("/v1/me"),
    ]
    job_id = answers[0].json()["id"]
    backend.refused.add(f"{job_id}-a1")
    reconciler.reconcile()
    reconciler.reconcile()
    assert store.get(Job, job_id).status == "failed"
    monkeypatch.setattr(Store, "list_runs", lambda *_args, **_options: 1 / 0)
    answers += [mine.get("/v1/jobs"), http.post(f"/v1/keys/{made['id']}/revoke"), mine.get("/v1/me")]
    answers += [http.get("/v1/audit"), http.get("/v1/keys"), http.get(f"/v1/jobs/{job_id}/events")]
    assert [answer.status_code for answer in answers[6:9]] == [500, 200, 401]
    with store._engine.connect() as connection:
        rows = [str(connection.execute(select(table)).all()) for table in Base.metadata.sorted_tables]
    told = [answer.text + str(answer.headers) for answer in answers]
    own = "".join(record.getMessage() + str(record.exc_text) for record in caplog.records)
    for hidden in (secret, CANARY):
        assert hidden not in "".join([*told, *rows, own])
    assert len(caplog.records) > 0
