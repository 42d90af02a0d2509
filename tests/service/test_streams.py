"""Following runs: events and logs as they come, over a real socket, by many at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.api.event_feed import EventFeed
from service.api.log_feed import LogFeed
from service.api.server import Server
from service.cli import app
from service.client import calls
from service.client.client import AsyncClient, Client
from service.errors import NotFoundError, ServiceUnreachableError
from service.reconcile import Reconciler
from service.spec.event import Event
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.spec.sweep import SweepSpec
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def job(store: Store, spec: JobSpec, reconciler: Reconciler, tmp_path: Path) -> Job:
    """A running one."""
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler.reconcile()
    reconciler.reconcile()
    return store.get(Job, job.id)


_numbers = itertools.count()


def happen(store: Store, job: Job, *steps: int) -> None:
    """Training steps are taken in."""
    events = [Event(type="train.step", stage="train", data={"step": step, "loss": 9.0 / step}) for step in steps]
    store.ingest_segment(job.id, f"segment-{next(_numbers)}", events)


@pytest.fixture
def end(store: Store, backend: RecordingBackend, reconciler: Reconciler) -> Callable[[Job], None]:
    """Lets a job succeed."""

    def end(job: Job) -> None:
        with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
            events.emit("job.finished")
        backend.states[f"{job.id}-a1"] = ("succeeded", "")
        reconciler.reconcile()
        assert store.get(Job, job.id).status == "succeeded"

    return end


def test_events_come_as_they_happen_and_the_stream_ends_with_the_job(
    client: Client, store: Store, job: Job, end: Callable[[Job], None]
) -> None:
    happen(store, job, 1, 2)
    acts = {5: lambda: happen(store, job, 3), 6: lambda: end(job)}
    seen = []
    for event in client.jobs.get(job.id).stream_events():
        seen.append((event.sequence, event.type))
        acts.get(event.sequence, lambda: None)()  # the next comes only if this one did not wait for it
    types = [*["job.status"] * 3, *["train.step"] * 3, "job.finished", "job.status"]
    assert seen == list(enumerate(types, 1))
    assert [event.sequence for event in client.jobs.stream_events(job.id, after=6)] == [7, 8]


def test_a_follower_whose_connection_breaks_goes_on_where_it_broke_off(
    url: str, key: str, store: Store, job: Job, end: Callable[[Job], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "retry_delay_s", lambda _retry: 0.0)
    asked: list[str] = []

    class Breaking(httpx.HTTPTransport):
        """The real way to the service, which loses each of the first connections after some messages."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request.url.params["after"])
            response = super().handle_request(request)
            return (
                response
                if len(asked) > 3
                else httpx.Response(response.status_code, headers=response.headers, stream=Torn(response))
            )

    class Torn(httpx.SyncByteStream):
        def __init__(self, response: httpx.Response) -> None:
            self.response = response

        def __iter__(self) -> Iterator[bytes]:
            assert isinstance(self.response.stream, httpx.SyncByteStream)
            for part in self.response.stream:
                second = part.index(b"\n\n", part.index(b"\n\n") + 2)
                yield part[: second + 7]
                raise httpx.ReadError("torn")

        def close(self) -> None:
            self.response.close()

    happen(store, job, *range(1, 6))
    end(job)
    with Client(url, key, transport=Breaking()) as client:
        assert [event.sequence for event in client.jobs.stream_events(job.id)] == list(range(1, 11))
    assert asked == ["0", "2", "4", "6"]


def test_a_service_that_stays_away_is_said_to_be(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "retry_delay_s", lambda _retry: 0.0)
    with Client("http://127.0.0.1:9", key) as client:
        with pytest.raises(ServiceUnreachableError, match="following job-1 broke off"):
            list(client.jobs.stream_events("job-1"))
        with pytest.raises(ServiceUnreachableError, match="log of job-1"):
            list(client.jobs.stream_logs("job-1"))


def test_a_browser_that_has_seen_all_is_told_not_to_come_back(
    http: TestClient, store: Store, job: Job, end: Callable[[Job], None]
) -> None:
    happen(store, job, 1)
    end(job)
    path = f"/v1/jobs/{job.id}/events:stream"
    answer = http.get(path, headers={"Last-Event-ID": "4"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert [line for line in answer.text.splitlines() if line.startswith(("id", "event"))] == [
        "event: job.finished", "id: 5", "event: job.status", "id: 6", "event: end"
    ]  # fmt: skip
    assert http.get(path, headers={"Last-Event-ID": "6"}).status_code == 204
    assert http.get(path, headers={"Last-Event-ID": "x"}).status_code == 422


def test_only_what_there_is_can_be_followed(client: Client, job: Job, sweep_spec: SweepSpec) -> None:
    with pytest.raises(NotFoundError, match="no sweep"):
        list(client.sweeps.stream_events(job.id))
    with pytest.raises(NotFoundError, match="no job"):
        list(client.jobs.stream_logs("job-0"))
    sweep = client.sweeps.create(sweep_spec)
    sweep.cancel()
    told = [event.data["new"] for event in sweep.stream_events()]
    assert told == ["queued", "cancelled"], "cancelled before it began, it had nothing to tell"


def test_a_watcher_is_told_whenever_the_job_stands_otherwise(
    client: Client, store: Store, spec: JobSpec, job: Job, reconciler: Reconciler, end: Callable[[Job], None]
) -> None:
    seen: list[tuple[str, int | None]] = []
    for state in client.jobs.watch(job.id):
        assert state.spec == job.spec
        seen.append((state.status, state.progress.step))
        if seen == [("running", None)] * 2:
            happen(store, job, 1)
        if seen[-1] == ("running", 1):
            end(job)
    assert seen == [("running", None), ("running", None), ("running", 1), ("succeeded", 1)]
    ahead, waiting = client.jobs.create(spec), client.jobs.create(spec)
    positions = []
    for state in waiting.watch():
        positions.append(state.queue_position)
        if positions == [2, 2]:
            ahead.cancel()
        if state.queue_position == 1:
            waiting.cancel()
    assert positions == [2, 2, 1, None], "also when it stands otherwise by what became of another"


def test_many_followers_cost_the_store_no_more_than_one(store: Store, job: Job) -> None:
    statements: list[str] = []
    poll_s = 0.05
    sqlalchemy_event.listen(store._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    async def follow(num_followers: int) -> tuple[int, float, int]:
        feed = EventFeed(store, poll_interval_s=poll_s)

        async def read() -> int:
            count = 0
            async for message in feed.follow(job.id, after=last, included=["events"]):
                count += message.count(b"\nid: ")
                if count == 5:
                    return count
            raise AssertionError("the stream ended early")

        [last] = [head.last_sequence for head in store.heads([job.id]).values()]
        readers = [asyncio.create_task(read()) for _ in range(num_followers)]
        while feed.num_followers < num_followers:
            await asyncio.sleep(poll_s)
        await asyncio.sleep(2 * poll_s)
        before, start = threading.active_count(), time.monotonic()
        statements.clear()
        for number in range(1, 6):
            happen(store, job, number)
        counts = await asyncio.gather(*readers)
        assert set(counts) == {5}
        assert threading.active_count() <= before, "no follower has a thread"
        looks = (time.monotonic() - start) / poll_s + 1
        num_statements = len([text for text in statements if text.startswith("SELECT events") or "coalesce" in text])
        await asyncio.sleep(4 * poll_s)
        statements.clear()
        await asyncio.sleep(4 * poll_s)
        return num_statements, looks, len(statements)

    for num_followers in (1, 400):
        num_statements, looks, afterwards = asyncio.run(follow(num_followers))
        assert num_statements <= 2 * looks, "of each look one for the heads, and one for the run's events"
        assert afterwards == 0, "where nobody follows, nobody looks"


def test_a_late_follower_gets_all_that_it_missed_in_order(store: Store, job: Job) -> None:
    happen(store, job, *range(1, 1101))

    async def read() -> list[int]:
        feed = EventFeed(store, poll_interval_s=0.05)
        numbers: list[int] = []
        async for message in feed.follow(job.id, after=6, included=["events"]):
            numbers += [int(line[4:]) for line in message.decode().splitlines() if line.startswith("id: ")]
            if numbers[-1] == 1103:
                await asyncio.to_thread(happen, store, job, *range(1101, 2201))
            if numbers[-1] == 2203:
                return numbers
        raise AssertionError("the stream ended early")

    assert asyncio.run(read()) == list(range(7, 2204))


def test_heartbeats_are_no_events(
    client: Client, parts: ControlPlane, store: Store, job: Job, end: Callable[[Job], None]
) -> None:
    parts.__dict__["event_feed"] = EventFeed(store, poll_interval_s=0.05, heartbeat_s=0.1)
    happen(store, job, 1)
    after_silence = threading.Timer(0.5, lambda: end(job))
    after_silence.start()
    types = [event.type for event in client.jobs.get(job.id).stream_events()]
    after_silence.join()
    assert types[-3:] == ["train.step", "job.finished", "job.status"]


def test_silence_is_broken_by_heartbeats(store: Store, job: Job) -> None:
    async def read() -> list[bytes]:
        feed = EventFeed(store, poll_interval_s=0.05, heartbeat_s=0.1)
        stream = feed.follow(job.id, after=3, included=["events"])
        return [await anext(stream) for _ in range(3)]

    assert {message.strip(b"\n ") for message in asyncio.run(read())} == {b":"}


def test_a_store_that_fails_for_a_moment_ends_no_stream(
    store: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:

    heads, failures = store.heads, itertools.count()

    def failing(run_ids: list[str]) -> object:
        if next(failures) < 2:
            raise OperationalError("select", {}, Exception("locked"))
        return heads(run_ids)

    monkeypatch.setattr(store, "heads", failing)
    happen(store, job, 1)

    async def read() -> bytes:
        return await anext(EventFeed(store, poll_interval_s=0.05).follow(job.id, after=0, included=["events"]))

    assert b"id: 1" in asyncio.run(read())


def test_followers_do_not_keep_the_service_from_stopping(parts: ControlPlane, key: str, job: Job) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(create_app(parts), lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", key) as client:
            with (
                client.open_stream(calls.JOBS.stream_events(job.id, 3, "events"), 20.0) as events,
                client.open_stream(calls.JOBS.stream_logs(job.id, None), 20.0) as logs,
            ):
                printed = logs.iter_text()
                assert "logs of" in next(printed)
                server.should_exit = True
                assert list(events.iter_raw()) == [], "no last message: the job goes on"
                assert list(printed) == []
            thread.join(timeout=5)
        assert not thread.is_alive()


def test_logs_are_followed_over_attempts_until_the_job_is_over(
    client: Client,
    job: Job,
    backend: RecordingBackend,
    reconciler: Reconciler,
    parts: ControlPlane,
) -> None:
    vars(parts)["log_feed"] = LogFeed(parts.store, backend, 0.05)
    first, second = f"{job.id}-a1", f"{job.id}-a2"
    backend.printed = {first: "one\ntwo\nthree\n", second: "again\n"}

    def print_more() -> None:
        backend.printed[first] += "four\n"

    def lose() -> None:
        backend.states[first] = ("failed", "killed")
        reconciler.reconcile()
        reconciler.reconcile()

    def finish() -> None:
        with EventWriter(RunDirectory(job.run_url), "driver", attempt=2) as events:
            events.emit("job.finished")
        backend.states[second] = ("succeeded", "")
        reconciler.reconcile()

    acts, printed = [print_more, lose, finish], []
    for part in client.jobs.stream_logs(job.id, tail=2):
        printed.append(part)
        acts.pop(0)()
    assert printed == ["two\nthree\n", "four\n", "again\n"]
    assert client.jobs.get(job.id).logs(tail=1) == "again\n"


def test_the_awaited_client_follows_too(url: str, key: str, store: Store, job: Job, end: Callable[[Job], None]) -> None:
    happen(store, job, 1)

    async def collect(items: AsyncIterator[object]) -> list[object]:
        return [item async for item in items]

    async def follow() -> list[list[object]]:
        async with AsyncClient(url, key) as client:
            tasks = asyncio.gather(
                collect(client.jobs.stream_events(job.id)),
                collect(client.jobs.watch(job.id)),
                collect(client.jobs.stream_logs(job.id, tail=1)),
            )
            await asyncio.sleep(0.5)
            await asyncio.to_thread(end, job)
            return [*await tasks, await collect(client.jobs.all_events(job.id))]

    events, states, logs, all_events = asyncio.run(follow())
    assert events == all_events
    assert [state.status for state in states][-1] == "succeeded"  # type: ignore[attr-defined]
    assert logs == [f"logs of {job.id}-a1\n"]


@pytest.mark.usefixtures("apart")
def test_the_command_line_follows(url: str, key: str, store: Store, job: Job, end: Callable[[Job], None]) -> None:
    access = ("--url", url, "--api-key", key)
    happen(store, job, 1, 2)
    runner = CliRunner()
    assert "train.step" in runner.invoke(app, ["events", job.id, *access]).output
    timer = threading.Timer(0.5, end, [job])
    timer.start()
    followed = runner.invoke(app, ["events", job.id, "--follow", "--json", "--after", "4", *access])
    timer.join()
    assert [json.loads(line)["sequence"] for line in followed.output.splitlines()] == [5, 6, 7]
    watched = runner.invoke(app, ["watch", job.id, "--json", *access])
    assert [json.loads(line)["status"] for line in watched.output.splitlines()] == ["succeeded"]
    assert runner.invoke(app, ["logs", "-f", "--tail", "1", job.id, *access]).output == f"logs of {job.id}-a1\n"
    told = runner.invoke(app, ["logs", "--json", "--tail", "1", job.id, *access]).output
    assert json.loads(told) == {"log": f"logs of {job.id}-a1\n"}
