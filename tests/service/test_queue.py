"""The queue as users see it: priorities, quotas, room, preemption, approvals; the cluster is played by the test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.attempts import Limits
from service.cli import app as command
from service.client.client import Client
from service.errors import ConflictError, InvalidSpecError
from service.plan.cost_gate import planned_gpu_hours
from service.reconcile import Reconciler
from service.spec.access import Quotas
from service.spec.job import JobSpec
from service.spec.resources import Job, Sweep
from service.spec.sweep import SweepSpec, changed
from service.store import usage
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend
from tests.service.test_race import SteppingDatetime


class Clock:
    """Shows what it is set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def look(store: Store, backend: RecordingBackend, clock: Clock) -> Callable[[], None]:
    """One look of a control plane with room for two jobs, whose drivers may say nothing for as long as they like."""
    limits = Limits(backoff_s=0.0, silence_timeout_s=math.inf)
    reconciler = Reconciler(store, backend, max_running_jobs=2, interval_s=60.0, limits=limits, clock=clock)

    def look() -> None:
        for _ in range(3):
            reconciler.reconcile()

    return look


def spec_of(spec: JobSpec, name: str, workers: int = 1) -> JobSpec:
    parallel = spec.parallel.model_copy(update={"num_workers": workers, "expert_parallel_size": 1})
    return spec.model_copy(update={"name": name, "parallel": parallel})


def statuses(store: Store) -> dict[str, str]:
    return {job.name: job.status for job in store.list_runs(Job)[0]}


def test_the_highest_priority_starts_first(
    client: Client, store: Store, spec: JobSpec, look: Callable[[], None]
) -> None:
    for name, priority in (("low", -1), ("middle", 0), ("high", 3)):
        assert client.jobs.create(spec_of(spec, name), priority=priority).priority == priority
    look()
    assert statuses(store) == {"low": "queued", "middle": "running", "high": "running"}
    [low] = client.queue().waiting
    assert (low.queue_position, low.queue_reason) == (1, "2 jobs run, of 2 at a time")
    assert {entry.name for entry in client.queue().running} == {"middle", "high"}


def test_a_job_waits_until_all_its_workers_fit(
    client: Client, store: Store, backend: RecordingBackend, spec: JobSpec, look: Callable[[], None]
) -> None:
    backend.max_cpus = 3.0
    first = client.jobs.create(spec_of(spec, "first", 2))
    second = client.jobs.create(spec_of(spec, "second", 2))
    look()
    assert statuses(store) == {"first": "running", "second": "queued"}
    assert client.jobs.get(second.id).queue_reason == "needs 2 CPUs at once; free are 1 CPUs"
    client.jobs.cancel(first.id)
    backend.states[f"{first.id}-a1"] = ("stopped", "")
    look()
    assert client.jobs.get(second.id).status == "running"
    assert client.jobs.get(second.id).queue_reason is None


def test_a_higher_priority_takes_the_place_of_a_lower_one_which_goes_on_as_its_next_attempt(
    client: Client, store: Store, backend: RecordingBackend, spec: JobSpec, look: Callable[[], None], clock: Clock
) -> None:
    backend.max_cpus = 2.0
    low = client.jobs.create(spec_of(spec, "low", 2), priority=-5)
    look()
    high = client.jobs.create(spec_of(spec, "high", 2), priority=5)
    look()
    assert statuses(store) == {"low": "running", "high": "queued"}, "it has only just begun"
    clock.now += 400
    look()
    assert client.jobs.get(low.id).status == "preempting"
    assert set(backend.stopped) == {f"{low.id}-a1"}
    assert client.jobs.get(high.id).queue_reason == "waits for jobs of lower priority to give way"
    backend.states[f"{low.id}-a1"] = ("stopped", "")
    look()
    assert statuses(store) == {"low": "queued", "high": "running"}
    with EventWriter(RunDirectory(high.run_url), "driver", attempt=1) as events:
        events.emit("job.finished", report="r")
    backend.states[f"{high.id}-a1"] = ("succeeded", "")
    look()
    again = client.jobs.get(low.id)
    assert (again.status, again.attempt) == ("running", 2)
    told = [event.data["reason"] for event in store.list_events(Job, low.id)[0] if event.data["new"] == "preempting"]
    assert told == [f"gives way to {high.id}"]


def test_what_has_finished_before_it_could_give_way_has_succeeded(
    client: Client, store: Store, backend: RecordingBackend, spec: JobSpec, look: Callable[[], None], clock: Clock
) -> None:
    backend.max_cpus = 2.0
    low = client.jobs.create(spec_of(spec, "low", 2))
    look()
    clock.now += 400
    client.jobs.create(spec_of(spec, "high", 2), priority=5)
    look()
    with EventWriter(RunDirectory(low.run_url), "driver", attempt=1) as events:
        events.emit("job.finished", report="r")
    backend.states[f"{low.id}-a1"] = ("succeeded", "")
    look()
    assert statuses(store) == {"low": "succeeded", "high": "running"}


def test_a_project_has_no_more_than_its_quotas(
    client: Client, store: Store, spec: JobSpec, look: Callable[[], None]
) -> None:
    client.change_quotas("default", Quotas(max_running_jobs=1, max_gpus=1, max_priority=2))
    with pytest.raises(InvalidSpecError, match="1 GPUs"):
        client.jobs.create(spec_of(spec, "large", 2))
    with pytest.raises(InvalidSpecError, match="highest that the project may ask for"):
        client.jobs.create(spec_of(spec, "urgent"), priority=3)
    client.jobs.create(spec_of(spec, "first"))
    second = client.jobs.create(spec_of(spec, "second"))
    look()
    assert statuses(store) == {"first": "running", "second": "queued"}
    assert client.jobs.get(second.id).queue_reason == "project default has 1 jobs running, of 1 it may"
    client.change_quotas("default", Quotas())
    look()
    assert statuses(store) == {"first": "running", "second": "running"}


def test_gpu_hours_are_counted_and_when_they_are_used_up_nothing_more_starts(
    client: Client,
    store: Store,
    spec: JobSpec,
    look: Callable[[], None],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usage, "datetime", SteppingDatetime)
    client.change_quotas("default", Quotas(max_gpu_hours=0.5))
    first = client.jobs.create(spec_of(spec, "first", 2))
    look()

    def pass_time(seconds: float, wall_s: float) -> None:
        clock.now += seconds
        SteppingDatetime.step += usage.timedelta(seconds=wall_s)
        look()

    try:
        pass_time(0, 0)
        pass_time(600, 600)
        assert client.jobs.get(first.id).gpu_seconds == pytest.approx(1200, abs=20)
        pass_time(10, 86_400)
        assert client.jobs.get(first.id).gpu_seconds < 1300, "a wall clock that jumps is not believed"
        pass_time(600, -7200)
        pass_time(600, 600)
        assert client.jobs.get(first.id).gpu_seconds == pytest.approx(2400, abs=60)
    finally:
        SteppingDatetime.step = usage.timedelta()
    second = client.jobs.create(spec_of(spec, "second"))
    look()
    assert client.jobs.get(second.id).queue_reason == "project default has used up its GPU hours"
    assert client.jobs.get(first.id).status == "running"


@pytest.mark.parametrize("max_steps", [10_000_000, None])
def test_what_is_planned_to_take_too_much_awaits_an_approval(
    client: Client, store: Store, spec: JobSpec, look: Callable[[], None], max_steps: int | None
) -> None:
    client.change_quotas("default", Quotas(max_gpu_hours_per_job=0.001))
    dear = spec.model_copy(update={"train": spec.train.model_copy(update={"max_steps": max_steps})})
    job = client.jobs.create(dear)
    assert job.status == "needs_approval"
    assert "an admin must approve it" in (job.queue_reason or "")
    look()
    assert client.jobs.get(job.id).status == "needs_approval"
    assert client.jobs.approve(job.id).status == "queued"
    assert client.jobs.approve(job.id).status == "queued", "approving twice is no error"
    look()
    assert client.jobs.get(job.id).status == "running"
    reasons = [event.data["reason"] for event in store.list_events(Job, job.id)[0] if event.data["new"] == "queued"]
    assert reasons == ["approved by admin"]


def test_what_is_cheap_or_awaits_an_approval_no_more_needs_none(
    client: Client, spec: JobSpec, sweep_spec: SweepSpec, store: Store
) -> None:
    client.change_quotas("default", Quotas(max_gpu_hours_per_job=1.0))
    cheap = spec.model_copy(update={"train": spec.train.model_copy(update={"max_steps": 2})})
    assert client.jobs.create(cheap).status == "queued"
    assert client.sweeps.create(sweep_spec).status == "queued"
    dear = client.jobs.create(spec)
    assert client.jobs.cancel(dear.id).status == "cancelled"
    with pytest.raises(ConflictError):
        client.jobs.approve(dear.id)


def test_of_a_sweep_every_trial_counts_that_it_may_run(sweep_document: dict[str, Any]) -> None:
    stages = [{"name": "small", "max_steps": 4, "candidates": 6}, {"name": "large", "max_tokens": 8 * 64}]
    spec = SweepSpec.model_validate(sweep_document | {"stages": stages})
    trial = changed(spec.base, {"train.max_steps": 4})
    hours = planned_gpu_hours(trial)
    assert hours is not None
    # three of the base mix and five more; three again and twice the three beams; 8 rows of 64 are 4 steps of 2 rows
    assert planned_gpu_hours(spec) == pytest.approx(hours * (8 + 9))


def test_only_admins_approve_and_only_the_default_projects_set_quotas(
    http: TestClient, client: Client, spec: JobSpec
) -> None:
    client.change_quotas("default", Quotas(max_gpu_hours_per_job=0.0))
    job = client.jobs.create(spec)
    http.post("/v1/users", json={"id": "ada", "role": "member"})
    key = http.post("/v1/keys", json={"name": "k", "user": "ada", "scopes": ["read", "write"]}).json()["secret"]
    as_ada = {"Authorization": f"Bearer {key}"}
    assert http.post(f"/v1/jobs/{job.id}/approve", headers=as_ada).status_code == 403
    assert http.get("/v1/queue", headers=as_ada).json()["waiting"][0]["id"] == job.id
    other = http.post("/v1/projects", json={"id": "other"}).json()["first_key"]["secret"]
    as_other = {"Authorization": f"Bearer {other}"}
    assert http.patch("/v1/projects/other", json={"quotas": {}}, headers=as_other).status_code == 403
    assert http.get("/v1/projects/default", headers=as_other).status_code == 404
    assert http.get("/v1/projects/other", headers=as_other).json()["quotas"]["max_gpus"] is None
    assert http.get("/v1/queue", headers=as_other).json()["waiting"] == []


def test_the_priority_of_what_waits_can_be_changed(
    client: Client, spec: JobSpec, store: Store, look: Callable[[], None], sweep_spec: SweepSpec
) -> None:
    running = [client.jobs.create(spec_of(spec, f"runs-{n}")) for n in range(2)]
    look()
    first, second = (client.jobs.create(spec_of(spec, name)) for name in ("first", "second"))
    sweep = client.sweeps.create(sweep_spec)
    look()
    assert [entry.id for entry in client.queue().waiting] == [first.id, second.id, sweep.id]
    assert second.update(priority=5).priority == 5
    assert second.update(priority=5).priority == 5, "asking twice is no error"
    assert client.sweeps.get(sweep.id).update(priority=7).priority == 7
    look()
    assert [entry.id for entry in client.queue().waiting] == [sweep.id, second.id, first.id]
    told = [event for event in client.jobs.events(second.id).data if event.type == "job.priority"]
    assert [event.data for event in told] == [{"old": 0, "new": 5}]
    recorded = [entry for entry in store.list_audit()[0] if entry.action == "update_job"]
    assert [(entry.target, entry.outcome) for entry in recorded] == [(f"/v1/jobs/{second.id}", "done")] * 2
    with pytest.raises(ConflictError, match="only the priority of one that waits"):
        running[0].update(priority=1)
    client.change_quotas("default", Quotas(max_priority=3))
    with pytest.raises(InvalidSpecError, match="priority: is above 3"):
        first.update(priority=4)
    assert client.jobs.get(first.id).priority == 0


def test_a_job_is_changed_only_if_it_is_what_the_caller_has_seen(
    http: TestClient, client: Client, store: Store, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/jobs/{client.jobs.create(spec).id}"

    def change(priority: int, etag: str) -> int:
        return http.patch(path, json={"priority": priority}, headers={"If-Match": etag}).status_code

    seen = http.get(path).headers["ETag"]
    assert change(1, '"something-else"') == 412
    assert change(1, f'"something-else", {seen}') == 200
    assert change(2, seen) == 412, "it has changed since"
    assert change(2, "*") == 200
    answer = http.patch(path, json={"priority": 3}, headers={"If-Match": seen})
    assert answer.json()["code"] == "precondition_failed"
    set_priority = store._set_priority

    def overtaken(run: Any, priority: int) -> bool:
        monkeypatch.undo()
        assert set_priority(run, 9)
        return store._set_priority(run, priority)

    monkeypatch.setattr(Store, "_set_priority", lambda _store, run, priority: overtaken(run, priority))
    assert change(4, http.get(path).headers["ETag"]) == 412, "somebody was faster between the look and the change"
    assert client.jobs.get(path.rpartition("/")[2]).priority == 9
    for wrong in ({"priority": 11}, {"priority": "high"}, {}, {"priority": 1, "name": "other"}):
        assert http.patch(path, json=wrong).status_code == 422
    assert http.patch("/v1/jobs/job-0-0", json={"priority": 1}).status_code == 404
    assert http.patch("/v1/jobs/job-0-0", json={"priority": 1}, headers={"If-Match": seen}).status_code == 404


def test_projects_take_turns(
    client: Client,
    http: TestClient,
    store: Store,
    backend: RecordingBackend,
    spec: JobSpec,
    url: str,
    look: Callable[[], None],
) -> None:
    for n in range(3):
        client.jobs.create(spec_of(spec, f"default-{n}"))
    key = http.post("/v1/projects", json={"id": "other"}).json()["first_key"]["secret"]
    with Client(url, key) as other:
        other.jobs.create(spec_of(spec, "other-0"))
    look()
    assert {name for name, status in statuses(store).items() if status == "running"} == {"default-0", "other-0"}


def test_a_sweep_needs_room_for_a_trial_of_its_largest_stage(
    client: Client, backend: RecordingBackend, sweep_document: dict[str, Any], look: Callable[[], None]
) -> None:
    (Path(sweep_document["base"]["data"]["sources"][0]["uri"].removeprefix("file://")).parent / "gsm8k.jsonl").touch()
    backend.max_cpus = 1.0
    sweep_document["base"]["parallel"]["num_workers"] = 2
    sweep_document["stages"][0]["changes"] = {"parallel.num_workers": 1, "parallel.expert_parallel_size": 1}
    sweep = client.sweeps.create(SweepSpec.model_validate(sweep_document))
    look()
    assert client.sweeps.get(sweep.id).status == "running"
    assert isinstance(client.sweeps.get(sweep.id), Sweep)


def test_the_command_line_shows_the_queue_and_sets_quotas(
    url: str, key: str, client: Client, spec: JobSpec, apart: None
) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(command, [*arguments, "--url", url, "--api-key", key])
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(run("quotas", "--set", "max_gpu_hours_per_job=0", "--set", "weight=2", "--json"))["weight"] == 2.0
    job = client.jobs.create(spec, priority=4)
    table = run("queue")
    assert job.id in table
    assert "needs_approval" in table
    assert run("approve", job.id).strip() == "queued"
    assert run("update", job.id, "--priority", "-2").strip() == "priority -2"
    assert json.loads(run("update", job.id, "--priority", "4", "--json"))["priority"] == 4
    assert json.loads(run("queue", "--json"))["waiting"][0]["queue_position"] == 1
    assert "no limit" in run("quotas", "--set", "max_gpu_hours_per_job=none")
    result = CliRunner().invoke(command, ["quotas", "--set", "max_gpus=none", "--set", "nosuch=1", "--url", url])
    assert result.exit_code != 0
