"""How a job stands: its tree of stages; and lists and answers that hold no more than is wanted."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.cli import app
from service.client.client import AsyncClient, Client
from service.spec.event import STAGES, Event
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.spec.sweep import SweepSpec
from service.store.models import JobRow
from service.store.stages import Stages, fold_stages, stage_tree
from service.store.store import Store


def told(*events: Event) -> Stages:
    stages: Stages = {}
    for event in events:
        stages = fold_stages(stages, event)
    return stages


def event(type: Any, stage: str | None, **data: Any) -> Event:
    return Event(type=type, stage=stage, data=data)


def pack(done: int) -> Event:
    return event("stage.progress", "prepare", task="pack", done=done, total=4, unit="shards", eta_s=9.0)


def test_a_job_that_has_not_begun_has_all_its_stages_before_it(client: Client, spec: JobSpec) -> None:
    stages = client.jobs.create(spec).stages
    assert [(stage.name, stage.status, stage.tasks) for stage in stages] == [(name, "pending", []) for name in STAGES]


def test_tasks_follow_each_other_and_a_finished_stage_tells_what_it_took() -> None:
    read = event("stage.progress", "prepare", task="read", done=5, total=None, unit="rows", eta_s=None)
    running = [event("stage.started", "prepare"), read, pack(1), pack(3)]
    [prepare, *rest] = stage_tree(told(*running), "running")
    assert (prepare.status, prepare.eta_s) == ("running", 9.0)
    assert [(task.name, task.status, task.done, task.eta_s) for task in prepare.tasks] == [
        ("read", "finished", 5, None), ("pack", "running", 3, 9.0)
    ]  # fmt: skip
    assert {stage.status for stage in rest} == {"pending"}
    finished = event("stage.finished", "prepare", duration_s=7.5, reused=False, summary={})
    [prepare, *_] = stage_tree(told(*running, finished), "running")
    assert (prepare.status, prepare.duration_s, prepare.reused, prepare.eta_s) == ("finished", 7.5, False, None)
    assert {task.status for task in prepare.tasks} == {"finished"}
    assert prepare.finished_at is not None


def test_a_stage_that_a_later_attempt_finds_done_keeps_what_it_took_at_first() -> None:
    first = event("stage.finished", "prepare", duration_s=7.5, reused=False)
    again = [event("stage.started", "prepare"), event("stage.finished", "prepare", duration_s=0.1, reused=True)]
    begun = told(event("stage.started", "prepare"), pack(1), first, again[0])
    assert stage_tree(begun, "running")[0].status == "running"
    [prepare, *_] = stage_tree(told(event("stage.started", "prepare"), pack(1), first, *again), "running")
    assert (prepare.status, prepare.duration_s, prepare.reused, prepare.tasks) == ("finished", 7.5, False, [])


def test_steps_are_the_task_of_training_and_benchmarks_those_of_evaluation() -> None:
    before = event("eval.task", "evaluate", task="gsm8k", when="before")
    step = event("train.step", "train", step=3, total_steps=9, eta_s=6.0)
    stages = told(before, event("stage.started", "train"), step)
    assert "evaluate" not in stages, "what is evaluated before training does not begin the stage behind it"
    train = stage_tree(stages, "running")[1]
    assert [(task.done, task.total, task.unit, task.eta_s) for task in train.tasks] == [(3, 9, "steps", 6.0)]
    after = [event("stage.started", "evaluate"), event("eval.task", "evaluate", task="gsm8k", when="after")]
    evaluate = stage_tree(told(*after), "running")[2]
    assert [(task.name, task.status) for task in evaluate.tasks] == [("gsm8k (after)", "finished")]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_no_stage_runs_in_a_job_that_has_ended(status: Any) -> None:
    stages = stage_tree(told(event("stage.started", "prepare"), pack(1)), status)
    assert [stage.status for stage in stages] == [status, "pending", "pending", "pending"]
    assert stages[0].eta_s is None


def test_a_jobs_tree_comes_with_its_status(client: Client, store: Store, spec: JobSpec) -> None:
    job = client.jobs.create(spec)
    store.ingest_segment(job.id, "one", [event("stage.started", "prepare"), pack(2), event("job.started", None)])
    prepare = client.jobs.get(job.id).stages[0]
    assert (prepare.status, prepare.tasks[0].done) == ("running", 2)
    assert client.jobs.get(job.id).progress.done == 2


def test_who_has_an_answer_is_not_sent_it_again(http: TestClient, client: Client, spec: JobSpec) -> None:
    job = client.jobs.create(spec)
    first = http.get(f"/v1/jobs/{job.id}")
    etag = first.headers["etag"]
    again = http.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    job.cancel()
    changed = http.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "cancelled")
    assert changed.headers["etag"] != etag
    assert "etag" not in http.post("/v1/jobs:plan", json={"job": spec.model_dump(mode="json")}).headers
    assert "etag" not in http.get("/v1/jobs/job-0").headers


def test_a_place_in_the_queue_that_changed_is_another_answer(http: TestClient, client: Client, spec: JobSpec) -> None:
    ahead, waiting = client.jobs.create(spec), client.jobs.create(spec)
    etag = http.get(f"/v1/jobs/{waiting.id}").headers["etag"]
    ahead.cancel()
    assert http.get(f"/v1/jobs/{waiting.id}", headers={"If-None-Match": etag}).json()["queue_position"] == 1


def test_a_client_that_looks_again_is_sent_only_what_is_new(url: str, key: str, spec: JobSpec, client: Client) -> None:
    statuses: list[int] = []

    class Noting(httpx.HTTPTransport):
        """The real way to the service."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            statuses.append(response.status_code)
            return response

    job = client.jobs.create(spec)
    with Client(url, key, transport=Noting()) as looking:
        states = [looking.jobs.get(job.id).status for _ in range(3)]
        client.jobs.cancel(job.id)
        states.append(looking.jobs.get(job.id).status)
    assert states == ["queued", "queued", "queued", "cancelled"]
    assert statuses == [200, 304, 304, 200]

    async def look() -> list[str]:
        async with AsyncClient(url, key) as awaited:
            return [(await awaited.jobs.get(job.id)).status for _ in range(2)]

    assert asyncio.run(look()) == ["cancelled"] * 2


@pytest.fixture
def listed(client: Client, store: Store, spec: JobSpec) -> dict[str, Job]:
    """Jobs of some names, each an hour after the one before."""
    found, start = {}, datetime(2026, 1, 1, tzinfo=UTC)
    for number, name in enumerate(("support-a", "support-b", "maths", "a_b", "axb")):
        document = spec.model_dump(mode="json") | {"name": name.replace("_", "-")}
        job = client.jobs.create(JobSpec.model_validate(document))
        with store._transaction() as session:
            row = session.get_one(JobRow, job.id)
            row.name, row.created_at = name, start + timedelta(hours=number)
        found[name] = job
    return found


@pytest.mark.usefixtures("listed")
def test_lists_hold_what_is_asked_for(client: Client) -> None:
    def names(**only: Any) -> list[str]:
        assert [job.id for job in client.jobs.list(**only).data] == [job.id for job in client.jobs.list_all(**only)]
        return [job.name for job in client.jobs.list(**only).data]

    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert names(name="support") == ["support-b", "support-a"]
    assert names(name="a_b") == ["a_b"], "no pattern, but a part of the name"
    assert names(created_after=start + timedelta(hours=2)) == ["axb", "a_b", "maths"]
    assert names(created_before=start + timedelta(hours=1)) == ["support-a"]
    zone = datetime.fromisoformat("2026-01-01T02:00:00+01:00")
    assert names(created_before=zone) == ["support-a"], "the same moment in another zone"
    assert names(statuses=["queued"], name="maths", created_after=start) == ["maths"]
    assert names(statuses=["failed"]) == []
    assert len(names()) == 5


def test_filters_hold_over_pages_and_times_need_a_zone(http: TestClient, listed: dict[str, Job]) -> None:
    first = http.get("/v1/jobs", params={"name": "support", "limit": 1}).json()
    assert first["has_more"]
    rest = http.get("/v1/jobs", params={"name": "support", "after": first["data"][0]["id"]}).json()
    assert [job["id"] for job in rest["data"]] == [listed["support-a"].id]
    assert http.get("/v1/jobs", params={"created_after": "2026-01-01T00:00:00"}).status_code == 422
    assert http.get("/v1/jobs", params={"name": ""}).status_code == 422


def test_sweeps_are_filtered_likewise(client: Client, sweep_spec: SweepSpec) -> None:
    client.sweeps.create(sweep_spec)
    assert len(client.sweeps.list(name="mix", created_before=datetime.now(UTC) + timedelta(days=1)).data) == 1
    assert client.sweeps.list(name="nope").data == []


@pytest.mark.usefixtures("apart")
def test_the_command_lists_what_is_asked_for(url: str, key: str, listed: dict[str, Job]) -> None:
    found = CliRunner().invoke(
        app, ["jobs", "--name", "support", "--status", "queued", "--json", "--url", url, "--api-key", key]
    )
    assert [job["id"] for job in json.loads(found.output)["data"]] == [listed["support-b"].id, listed["support-a"].id]
