"""Messages to other services: written with their events, signed, sent over real HTTP until they are taken."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from standardwebhooks import Webhook as Verifier
from typer.testing import CliRunner

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.cli import app
from service.client.client import AsyncClient, Client
from service.errors import ConflictError, InvalidSpecError, NotFoundError
from service.reconcile import Reconciler
from service.spec.event import Event
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.spec.webhook import WebhookSpec
from service.store.event_log import append_events, status_event
from service.store.models import DeliveryRow, WebhookRow
from service.store.store import Store
from service.webhooks.address import is_public, request_to, resolve
from service.webhooks.schedule import PAUSES_S, is_given_up, next_attempt
from service.webhooks.sender import WebhookSender
from tests.service.recording_backend import RecordingBackend


class Receiver:
    """A real HTTP server that notes what it is sent, and answers as it is told to."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.headers: dict[str, str] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?team=a"

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.seen]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


@pytest.fixture
def parts(parts: ControlPlane) -> ControlPlane:
    return replace(parts, allow_private_webhooks=True)


@pytest.fixture
def sender(store: Store) -> Iterator[WebhookSender]:
    """One that the test has look by hand."""
    sender = WebhookSender(store, allow_private=True, timeout_s=2.0)
    yield sender
    sender._pool.shutdown()
    sender._http.close()


def make_due(store: Store) -> None:
    """Let the time of every pause pass."""
    with store._transaction() as session:
        for row in session.query(DeliveryRow).filter(DeliveryRow.status == "pending"):
            row.next_attempt_at = datetime.now(UTC) - timedelta(seconds=1)


def test_a_job_that_ends_is_told_in_a_signed_message(
    client: Client,
    spec: JobSpec,
    receiver: Receiver,
    sender: WebhookSender,
    reconciler: Reconciler,
    backend: RecordingBackend,
) -> None:
    webhook = client.webhooks.create(receiver.url, ["job.failed", "job.running"])
    job = client.jobs.create(spec)
    reconciler.reconcile()
    reconciler.reconcile()
    backend.refused.add(f"{job.id}-a2")
    del backend.states[f"{job.id}-a1"]
    reconciler.reconcile()
    reconciler.reconcile()
    while sender.send_due():
        pass
    assert [message["type"] for message in receiver.messages()] == ["job.running", "job.failed"]
    headers, body = receiver.seen[-1]
    told = Verifier(webhook.secret).verify(body, headers)
    assert (told["data"]["id"], told["data"]["kind"], told["data"]["name"]) == (job.id, "job", "small")
    assert "already runs another" in told["data"]["details"]["reason"]
    assert headers["host"] == httpx.URL(receiver.url).netloc.decode()
    assert headers["content-type"] == "application/json"
    events = {event.sequence: event for event in client.jobs.all_events(job.id)}
    assert events[told["data"]["sequence"]].type == "job.status"
    assert {item.status for item in client.webhooks.deliveries(webhook.id).data} == {"delivered"}
    with pytest.raises(Exception, match="No matching signature"):
        Verifier(webhook.secret).verify(body + b" ", headers)


def test_only_what_was_asked_for_is_told(
    client: Client, store: Store, spec: JobSpec, receiver: Receiver, sender: WebhookSender
) -> None:
    client.webhooks.create(receiver.url, ["checkpoint.saved", "job.warning", "stage.finished"])
    job = client.jobs.create(spec)
    warning = Event(type="job.warning", stage="train", message="expert 3", data={"kind": "dead_expert"})
    saved = Event(type="checkpoint.saved", stage="train", data={"step": 4, "path": "attempt-1/4"})
    finished = Event(type="stage.finished", stage="prepare", data={"duration_s": 1.0, "summary": {"long": [1] * 999}})
    step = Event(type="train.step", stage="train", data={"step": 1})
    store.ingest_segment(job.id, "one", [step, warning, saved, finished])
    store.ingest_segment(job.id, "one", [step, warning, saved, finished])
    while sender.send_due():
        pass
    told = {message["type"]: message["data"] for message in receiver.messages()}
    assert len(receiver.seen) == 3, "each event once, though its segment came twice"
    assert (told["job.warning"]["message"], told["job.warning"]["details"]) == ("expert 3", {"kind": "dead_expert"})
    assert told["checkpoint.saved"]["details"]["step"] == 4
    assert told["stage.finished"]["details"] == {"duration_s": 1.0}, "the event has the rest"


def test_a_message_is_there_if_and_only_if_its_event_is(store: Store, spec: JobSpec, receiver: Receiver) -> None:
    store.create_webhook(WebhookSpec(url=receiver.url, events=("job.cancelled",)))
    job, _ = store.create(Job, spec, "/runs")

    def crash_behind_the_event() -> None:
        with store._transaction() as session:
            append_events(session, job.id, [status_event("queued", "cancelled", 0)])
            session.flush()
            assert session.query(DeliveryRow).count() == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash_behind_the_event()
    with store._transaction() as session:
        assert session.query(DeliveryRow).count() == 0
    store.request_cancel(Job, job.id)
    with store._transaction() as session:
        assert session.query(DeliveryRow).count() == 1


def test_a_message_that_is_not_taken_is_sent_again_later_with_the_same_id(
    client: Client, store: Store, receiver: Receiver, sender: WebhookSender
) -> None:
    webhook = client.webhooks.create(receiver.url)
    receiver.answers, receiver.headers = [503, 301, 200], {"Retry-After": "120", "Location": receiver.url}
    client.webhooks.test(webhook.id)
    assert (sender.send_due(), sender.send_due()) == (1, 0), "not at once"
    [pending] = client.webhooks.deliveries(webhook.id).data
    assert (pending.status, pending.attempts, pending.last_status) == ("pending", 1, 503)
    assert pending.next_attempt_at is not None
    assert 100 < (pending.next_attempt_at - datetime.now(UTC)).total_seconds() <= 120, "as it asked for"
    assert client.webhooks.get(webhook.id).failing_since is not None
    for _ in range(2):
        make_due(store)
        assert sender.send_due() == 1
    [done] = client.webhooks.deliveries(webhook.id).data
    assert (done.status, done.attempts, done.last_status) == ("delivered", 3, 200), "a redirect is no answer"
    assert client.webhooks.get(webhook.id).failing_since is None
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
    for headers, body in receiver.seen:
        Verifier(webhook.secret).verify(body, headers)


def test_what_a_sender_claimed_and_died_over_is_sent_by_another(
    store: Store, receiver: Receiver, sender: WebhookSender
) -> None:
    webhook, _ = store.create_webhook(WebhookSpec(url=receiver.url))
    store.queue_test(webhook.id)
    [message] = store.due_messages(datetime.now(UTC), 10)
    assert store.claim(message, datetime.now(UTC) + timedelta(seconds=60))
    assert not store.claim(message, datetime.now(UTC) + timedelta(seconds=60)), "of two senders one has it"
    assert sender.send_due() == 0
    make_due(store)
    assert sender.send_due() == 1
    assert len(receiver.seen) == 1


def test_a_receiver_that_is_gone_or_takes_nothing_for_days_is_given_up_until_it_is_enabled(
    client: Client, store: Store, receiver: Receiver, sender: WebhookSender
) -> None:
    gone, silent = client.webhooks.create(receiver.url), client.webhooks.create("http://127.0.0.1:9/")
    receiver.answers = [410]
    client.webhooks.test(gone.id)
    client.webhooks.test(silent.id)
    assert sender.send_due() == 2
    assert client.webhooks.get(gone.id).disabled_reason == "it answered 410 Gone"
    still = client.webhooks.get(silent.id)
    assert still.disabled_at is None
    assert "refused" in (client.webhooks.deliveries(silent.id).data[0].last_error or "")
    with store._transaction() as session:
        session.get_one(WebhookRow, silent.id).failing_since = datetime.now(UTC) - timedelta(days=6)
    make_due(store)
    sender.send_due()
    assert "took nothing since" in (client.webhooks.get(silent.id).disabled_reason or "")
    make_due(store)
    assert sender.send_due() == 0
    with pytest.raises(ConflictError, match="disabled"):
        client.webhooks.test(gone.id)
    assert client.webhooks.enable(gone.id).disabled_at is None
    assert sender.send_due() == 1
    assert len(receiver.seen) == 2


def test_a_slow_receiver_delays_no_other(
    client: Client, store: Store, receiver: Receiver, sender: WebhookSender
) -> None:

    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = client.webhooks.create(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        quick = client.webhooks.create(receiver.url)
        for webhook in (slow, slow, *[quick] * 5):
            client.webhooks.test(webhook.id)
        start = time.monotonic()
        sender.send_due()
        assert 2.0 <= time.monotonic() - start < 4.0, "one try of the slow one at a time"
        while sender.send_due():
            pass
    assert len(receiver.seen) == 5
    assert {item.last_error for item in client.webhooks.deliveries(slow.id).data} == {"timed out"}


def test_messages_go_out_by_themselves_while_the_service_runs(
    parts: ControlPlane, receiver: Receiver, key: str
) -> None:
    with TestClient(create_app(parts), headers={"Authorization": f"Bearer {key}"}) as http:
        webhook = http.post("/v1/webhooks", json={"url": receiver.url}).json()
        assert http.post(f"/v1/webhooks/{webhook['id']}/test").status_code == 202
        for _ in range(100):
            [delivery] = http.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()["data"]
            if delivery["status"] == "delivered":
                break
            threading.Event().wait(0.1)
        assert delivery["status"] == "delivered"
    assert [message["type"] for message in receiver.messages()] == ["webhook.test"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "240.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_sent_to(address: str) -> None:
    assert not is_public(address)
    host = f"[{address.partition('%')[0]}]" if ":" in address else address
    with pytest.raises(InvalidSpecError, match=r"^url: "):
        resolve(f"https://{host}/hook", allow_private=False)


def test_addresses_of_the_internet_are_sent_to_over_tls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_public("93.184.215.14")
    assert is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert resolve("https://93.184.215.14/hook", allow_private=False) == "93.184.215.14"
    with pytest.raises(InvalidSpecError, match="https://"):
        resolve("http://93.184.215.14/hook", allow_private=False)
    found = [(2, 1, 6, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_args, **_options: found)  # no name service here
    with pytest.raises(InvalidSpecError, match=r"10\.0\.0\.1"):
        resolve("https://example.com/", allow_private=False)


def test_a_request_goes_to_the_address_that_was_checked_and_tls_proves_the_name() -> None:
    request = request_to("93.184.215.14", "https://user:pass@example.com:8443/a?b=c", b"{}", {"x": "y"})
    assert str(request.url) == "https://93.184.215.14:8443/a?b=c"
    assert request.headers["host"] == "example.com:8443"
    assert request.extensions["sni_hostname"] == "example.com"


def test_a_service_that_allows_no_private_receivers_refuses_them_when_they_are_made_and_when_they_are_sent_to(
    parts: ControlPlane, store: Store, client: Client, receiver: Receiver
) -> None:
    parts.__dict__["allow_private_webhooks"] = False
    for url in (receiver.url, "https://127.0.0.1/", "https://nowhere.invalid/"):
        with pytest.raises(InvalidSpecError, match="url"):
            client.webhooks.create(url)
    webhook, _ = store.create_webhook(WebhookSpec(url=receiver.url))
    store.queue_test(webhook.id)
    sender = WebhookSender(store, allow_private=False)
    sender.send_due()
    sender._pool.shutdown()
    sender._http.close()
    assert receiver.seen == []
    assert "https" in (client.webhooks.deliveries(webhook.id).data[0].last_error or "")


def test_tries_are_spread_over_days_and_then_given_up() -> None:
    now = datetime.now(UTC)
    for number, pause_s in enumerate(PAUSES_S, 1):
        again = next_attempt(now, number, 0.0)
        assert again is not None
        assert pause_s <= (again - now).total_seconds() <= 1.2 * pause_s
    assert next_attempt(now, len(PAUSES_S) + 1, 0.0) is None
    longest = next_attempt(now, 1, 1e9)
    assert longest is not None
    assert (longest - now).total_seconds() == 86_400
    assert not is_given_up(now, now - timedelta(days=4), 500)


def test_webhooks_are_listed_made_once_for_a_key_and_deleted_with_their_messages(
    client: Client, store: Store, receiver: Receiver, http: TestClient
) -> None:
    first = client.webhooks.create(receiver.url, description="ours", idempotency_key="k")
    again = client.webhooks.create(receiver.url, description="ours", idempotency_key="k")
    assert (again.id, again.secret) == (first.id, first.secret)
    assert [item.id for item in client.webhooks.list()] == [first.id]
    assert "secret" not in http.get(f"/v1/webhooks/{first.id}").json()
    assert first.secret.encode() not in str(store.list_webhooks()).encode()
    for _ in range(2):
        client.webhooks.test(first.id)
    sent = [client.webhooks.test(first.id, idempotency_key="t").id for _ in range(2)]
    assert sent[0] == sent[1]
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        client.webhooks.test(first.id, idempotency_key="k")
    page = client.webhooks.deliveries(first.id, limit=2)
    assert page.has_more
    assert len(client.webhooks.deliveries(first.id, after=page.data[-1].id).data) == 1
    client.webhooks.delete(first.id)
    assert client.webhooks.list() == []
    other = client.webhooks.create(receiver.url, description="ours", idempotency_key="k")
    assert other.id != first.id, "what is deleted leaves its key"
    client.webhooks.delete(other.id)
    with store._transaction() as session:
        assert session.query(DeliveryRow).count() == 0
    for ask in (client.webhooks.get, client.webhooks.delete, client.webhooks.test, client.webhooks.deliveries):
        with pytest.raises(NotFoundError, match="no webhook"):
            ask(first.id)
    answer = http.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.exploded"]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "events.0")
    for _ in range(20):
        client.webhooks.create(receiver.url)
    with pytest.raises(ConflictError, match="20 webhooks at most"):
        client.webhooks.create(receiver.url)


def test_the_awaited_client_and_the_command_line_do_the_same(
    url: str, key: str, receiver: Receiver, sender: WebhookSender
) -> None:
    async def use() -> str:
        async with AsyncClient(url, key) as awaited:
            webhook = await awaited.webhooks.create(receiver.url, ["job.succeeded"])
            await awaited.webhooks.test(webhook.id)
            assert (await awaited.webhooks.get(webhook.id)).url == receiver.url
            assert len((await awaited.webhooks.deliveries(webhook.id)).data) == 1
            assert (await awaited.webhooks.enable(webhook.id)).id == webhook.id
            await awaited.webhooks.delete(webhook.id)
            return str(await awaited.webhooks.list())

    assert asyncio.run(use()) == "[]"

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["webhook", *arguments, "--url", url, "--api-key", key])
        assert result.exit_code == code, result.output
        return result.stdout.strip()

    webhook_id = run("create", receiver.url, "--event", "job.succeeded", "--event", "job.warning")
    assert webhook_id in run("list")
    assert json.loads(run("list", "--json"))[0]["events"] == ["job.succeeded", "job.warning"]
    message_id = run("test", webhook_id)
    sender.send_due()
    assert json.loads(run("deliveries", webhook_id, "--json"))["data"][0]["id"] == message_id
    assert "delivered" in run("deliveries", webhook_id)
    assert run("enable", webhook_id) == "works"
    run("create", receiver.url, "--event", "job.exploded", code=1)
    assert json.loads(run("delete", webhook_id, "--json"))["deleted"] is True
