"""Both clients against the real application over a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.client import calls
from service.client.client import AsyncClient, Client, is_loopback
from service.errors import (
    InvalidSettingsError,
    JobFailedError,
    NotAuthenticatedError,
    NotFoundError,
    RateLimitedError,
    ServiceUnreachableError,
    SleddogError,
    every_error,
)
from service.reconcile import Reconciler
from service.spec.job import JobSpec


class Flaky(httpx.HTTPTransport):
    """The real way to the service, with an answer lost and a 503 put in before the first that comes through."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if len(self.requests) == 1:
            super().handle_request(request).close()
            raise httpx.ReadError("the answer was lost")
        if len(self.requests) == 2:
            return httpx.Response(503)
        return super().handle_request(request)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "retry_delay_s", lambda _retry: 0.0)


def test_a_create_whose_answer_was_lost_makes_one_job(url: str, key: str, spec: JobSpec) -> None:
    transport = Flaky()
    with Client(url, key, transport=transport) as client:
        job = client.jobs.create(spec)
        assert [item.id for item in client.jobs.list().data] == [job.id]
    assert len({request.headers["idempotency-key"] for request in transport.requests[:3]}) == 1


def test_a_service_that_is_away_is_said_to_be(key: str) -> None:
    with Client("http://127.0.0.1:9", key) as client, pytest.raises(ServiceUnreachableError, match="sleddog serve"):
        client.health()


def test_another_server_is_recognised(key: str) -> None:
    page = httpx.MockTransport(lambda _request: httpx.Response(200, text="<html>"))  # a stranger's answer
    with (
        Client("http://127.0.0.1:9", key, transport=page) as client,
        pytest.raises(ServiceUnreachableError, match="no Sleddog"),
    ):
        client.jobs.get("job-1")


def test_an_id_is_one_part_of_the_path(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.jobs.get("../../healthz")


def test_a_key_file_may_end_in_a_newline_and_no_key_is_shown(
    url: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(f"{key}\n")
    monkeypatch.setenv("SLEDDOG_API_KEY_FILE", str(tmp_path / "key"))
    with Client(url) as client:
        assert client.jobs.list().data == []
    monkeypatch.delenv("SLEDDOG_API_KEY_FILE")
    with pytest.raises(NotAuthenticatedError, match="no API key"):
        Client(url)
    with pytest.raises(InvalidSettingsError) as caught:
        Client(url, "sd-sécret")
    assert "cret" not in str(caught.value)


def test_a_proxy_is_not_asked_for_this_machine(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(url, key) as client:
        assert client.health().status == "ok"
    assert not is_loopback("https://sleddog.example")
    assert is_loopback("http://[::1]:8700")
    with pytest.raises(InvalidSettingsError, match="is no URL"):
        is_loopback("http://[::1")


def test_the_awaited_client_does_what_the_blocking_one_does(
    url: str, key: str, client: Client, spec: JobSpec, reconciler: Reconciler
) -> None:
    async def use() -> dict[str, Any]:
        async with AsyncClient(url, key) as awaited:
            job = await awaited.jobs.create(spec)
            reconciler.reconcile()
            with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
                events.emit("train.step", stage="train", step=1, total_steps=2, loss=3.0)
            reconciler.reconcile()
            answers = {
                "get": await awaited.jobs.get(job.id),
                "list": await awaited.jobs.list(limit=1),
                "events": await awaited.jobs.events(job.id),
                "metrics": await awaited.jobs.metrics(job.id),
                "logs": await awaited.jobs.logs(job.id, tail=1),
                "health": await awaited.health(),
            }
            await awaited.jobs.cancel(job.id)
            return {"id": job.id, **answers}

    answers = asyncio.run(use())
    job_id = answers["id"]
    assert answers["get"].status == "running"
    assert [item.id for item in answers["list"].data] == [job_id]
    told = client.jobs.events(job_id).data
    assert answers["events"].data == [event for event in told if event.data.get("new") != "cancelling"]
    assert answers["metrics"] == client.jobs.metrics(job_id)
    assert answers["logs"] == client.jobs.logs(job_id, tail=1)
    assert answers["health"] == client.health()
    assert client.jobs.get(job_id).status == "cancelling"

    async def use_when_it_is_over() -> list[str]:
        async with AsyncClient(url, key) as awaited:
            with pytest.raises(NotFoundError):
                await awaited.jobs.report(job_id)
            with pytest.raises(JobFailedError, match="cancelled"):
                await awaited.jobs.wait(job_id, poll_s=0.01)
            return [event.type async for event in awaited.jobs.stream_events(job_id)]

    reconciler._backend.states[f"{job_id}-a1"] = ("stopped", "")  # type: ignore[attr-defined]
    reconciler.reconcile()
    assert [name for name in asyncio.run(use_when_it_is_over()) if name != "job.status"] == ["train.step"]


def test_the_public_surface_of_both_clients_is_the_same() -> None:
    from service.client.jobs import AsyncJobs, Jobs

    assert {name for name in dir(Jobs) if not name.startswith("_")} == {
        name for name in dir(AsyncJobs) if not name.startswith("_")
    }


@pytest.mark.parametrize("kind", list(every_error()))
def test_each_error_of_the_service_is_raised_as_what_it_was(kind: type[SleddogError]) -> None:
    about = {"title": "", "status": 400, "detail": "data.seed: too large", "code": kind.code}
    problem = about | {"errors": [{"field": "data.seed", "message": "too large"}]}
    with pytest.raises(SleddogError) as caught:
        calls.raise_for_problem(httpx.Response(400, headers={"Retry-After": "7"}, json=problem))
    assert type(caught.value) is kind
    if isinstance(caught.value, RateLimitedError):
        assert caught.value.retry_after_s == 7
    else:
        assert (caught.value.field, caught.value.message) == ("data.seed", "too large")


def test_an_error_of_a_newer_service_is_still_one() -> None:
    problem = {"title": "", "status": 400, "detail": "no room", "code": "unheard_of"}
    with pytest.raises(SleddogError, match="no room"):
        calls.raise_for_problem(httpx.Response(400, json=problem))
