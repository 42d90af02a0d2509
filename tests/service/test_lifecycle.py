"""Jobs that have ended: retried, resumed, forgotten. The test plays the cluster."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.api.event_feed import EventFeed
from service.cli import app
from service.client.client import AsyncClient, Client
from service.errors import ConflictError, NotFoundError
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.spec.resources import Job, JobStatus
from service.spec.sweep import SweepSpec
from service.store.models import EventRow, IdempotencyRow, JobRow, SegmentRow
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def failed(client: Client, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend) -> Job:
    """A job whose first attempt has failed with a reason."""
    job = client.jobs.create(spec, idempotency_key="first")
    reconciler.reconcile()
    reconciler.reconcile()
    fail(job, 1, backend, reconciler)
    assert client.jobs.get(job.id).status == "failed"
    return client.jobs.get(job.id)


def fail(job: Job, attempt: int, backend: RecordingBackend, reconciler: Reconciler) -> None:
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=attempt) as events:
        events.emit("job.failed", message="too bad", code="bad_row", fault="data")
    backend.states[f"{job.id}-a{attempt}"] = ("failed", "")
    reconciler.reconcile()


def test_a_retry_is_a_new_job_of_the_same_spec_that_names_the_old_one(client: Client, failed: Job) -> None:
    again = client.jobs.retry(failed.id, idempotency_key="k")
    assert (again.status, again.attempt, again.retry_of) == ("queued", 0, failed.id)
    assert again.spec_sha256 == failed.spec_sha256
    assert again.run_url != failed.run_url
    assert client.jobs.retry(failed.id, idempotency_key="k").id == again.id
    assert client.jobs.get(failed.id).status == "failed"
    with pytest.raises(ConflictError, match="is queued; cancel it"):
        again.retry()


def test_a_resumed_job_goes_on_as_its_next_attempt_in_the_same_directory(
    client: Client, failed: Job, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job = client.jobs.get(failed.id).resume()
    assert (job.status, job.error, job.finished_at, job.run_url) == ("queued", None, None, failed.run_url)
    assert client.jobs.resume(failed.id).status == "queued", "resuming twice is no error"
    reconciler.reconcile()
    reconciler.reconcile()
    assert backend.submitted == [f"{failed.id}-a1", f"{failed.id}-a2"]
    running = client.jobs.get(failed.id)
    assert (running.status, running.attempt, running.attempts_before) == ("running", 2, 1)
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=2) as events:
        events.emit("job.finished")
    backend.states[f"{failed.id}-a2"] = ("succeeded", "")
    reconciler.reconcile()
    assert client.jobs.get(failed.id).status == "succeeded", "the first attempt's last word does not count"
    with pytest.raises(ConflictError, match="nothing to resume"):
        client.jobs.resume(failed.id)


def test_a_resumed_job_may_be_lost_as_often_as_a_new_one(
    client: Client, failed: Job, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    client.jobs.resume(failed.id)
    reconciler.reconcile()
    reconciler.reconcile()
    for attempt in (2, 3, 4):
        assert client.jobs.get(failed.id).attempt == attempt
        del backend.states[f"{failed.id}-a{attempt}"]
        reconciler.reconcile()
        reconciler.reconcile()
    lost = client.jobs.get(failed.id)
    assert (lost.status, lost.attempt) == ("failed", 4)
    assert lost.error is not None
    assert lost.error.code == "driver_lost"


def test_a_job_that_never_began_is_resumed_as_if_it_had_not_been_cancelled(
    client: Client, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job = client.jobs.create(spec)
    job.cancel()
    job.resume()
    reconciler.reconcile()
    reconciler.reconcile()
    assert backend.submitted == [f"{job.id}-a1"]
    job.cancel()
    with pytest.raises(ConflictError, match="still being cancelled"):
        job.resume()


@pytest.mark.parametrize("path", ["/v1/jobs/{}/resume", "/v1/jobs/{}/retry"])
def test_a_job_whose_spec_this_version_does_not_take_is_not_started_again(
    http: TestClient, store: Store, failed: Job, path: str
) -> None:
    spec = failed.spec | {"train": {**dict(failed.spec["train"]), "warmth": 1}, "name": 3}  # type: ignore[arg-type]
    with store._transaction() as session:
        session.get_one(JobRow, failed.id).spec = spec
    answer = http.post(path.format(failed.id))
    assert (answer.status_code, answer.json()["code"]) == (409, "outdated_spec")
    assert "train.warmth: unknown field" in answer.json()["detail"]
    assert answer.json()["errors"][0]["field"] == "name"
    assert store.get(Job, failed.id).status == "failed"


def test_a_sweep_whose_spec_this_version_does_not_take_is_not_resumed(
    http: TestClient, store: Store, client: Client, sweep_spec: SweepSpec
) -> None:
    sweep = client.sweeps.create(sweep_spec)
    sweep.cancel()
    with store._transaction() as session:
        session.get_one(JobRow, sweep.id).spec = sweep.spec | {"stages": []}
    answer = http.post(f"/v1/sweeps/{sweep.id}/resume")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (409, "stages")


def test_two_who_resume_at_once_start_one_attempt(client: Client, store: Store, failed: Job) -> None:
    seen = store.get(Job, failed.id)
    assert store.change_status(seen, "queued")
    assert not store.change_status(seen, "queued")
    assert store.request_resume(Job, failed.id).attempts_before == 1


def test_a_deleted_job_is_no_longer_listed_and_leaves_no_row(client: Client, store: Store, failed: Job) -> None:
    client.jobs.get(failed.id).delete()
    assert client.jobs.list().data == []
    with pytest.raises(NotFoundError):
        client.jobs.get(failed.id)
    with pytest.raises(NotFoundError):
        client.jobs.delete(failed.id)
    with store._transaction() as session:
        for table in (JobRow, EventRow, SegmentRow, IdempotencyRow):
            assert session.query(table).count() == 0
    assert Path(failed.run_url).exists(), "the files stay"
    assert store.unfinished() == []


def test_a_purged_job_leaves_no_file_but_what_others_share(client: Client, failed: Job) -> None:
    prepared = Path(failed.run_url).parent / "prepared"
    prepared.mkdir()
    client.jobs.delete(failed.id, purge=True)
    assert not Path(failed.run_url).exists()
    assert prepared.exists()


def test_only_what_has_ended_is_deleted(client: Client, spec: JobSpec, reconciler: Reconciler) -> None:
    job = client.jobs.create(spec)
    for _ in range(2):
        with pytest.raises(ConflictError, match="cancel it, and wait"):
            client.jobs.delete(job.id, purge=True)
        reconciler.reconcile()
        reconciler.reconcile()
    assert Path(job.run_url).exists()


def test_a_job_that_was_resumed_meanwhile_is_not_deleted(
    store: Store, failed: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = store.get(Job, failed.id)
    assert store.change_status(ended, "queued")
    monkeypatch.setattr(store, "require_ended", lambda *_: ended)
    with pytest.raises(ConflictError, match="meanwhile"):
        store.delete(Job, failed.id)
    assert store.get(Job, failed.id).status == "queued"
    assert store.events_after(failed.id, 0, 10), "nothing of it was lost"


def test_a_sweep_is_resumed_and_deleted_likewise(client: Client, sweep_spec: SweepSpec) -> None:
    sweep = client.sweeps.create(sweep_spec)
    sweep.cancel()
    assert client.sweeps.resume(sweep.id).status == "queued"
    sweep.cancel()
    client.sweeps.delete(sweep.id)
    assert client.sweeps.list().data == []
    with pytest.raises(NotFoundError, match="no sweep"):
        client.sweeps.delete(client.jobs.create(sweep_spec.base).id)


def test_a_follower_of_a_job_that_was_resumed_goes_on(client: Client, store: Store, failed: Job) -> None:
    async def follow() -> str:
        feed = EventFeed(store, poll_interval_s=0.05)
        stays = feed.follow(failed.id, 0, ["events"])
        await anext(stays)
        await asyncio.to_thread(client.jobs.resume, failed.id)
        await asyncio.sleep(0.3)
        message = await anext(feed.follow(failed.id, 0, ["snapshots"]))
        return str(json.loads(message.partition(b"data: ")[2])["status"])

    assert asyncio.run(follow()) == "queued"


def test_the_awaited_client_and_the_command_line_do_the_same(url: str, key: str, client: Client, failed: Job) -> None:
    async def use() -> tuple[str | None, JobStatus]:
        async with AsyncClient(url, key) as awaited:
            again = await awaited.jobs.retry(failed.id)
            await awaited.jobs.cancel(again.id)
            status = (await awaited.jobs.resume(again.id)).status
            await awaited.jobs.cancel(again.id)
            await awaited.jobs.delete(again.id)
            return again.retry_of, status

    assert asyncio.run(use()) == (failed.id, "queued")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--url", url, "--api-key", key])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    again = run("retry", failed.id)
    assert client.jobs.get(again).retry_of == failed.id
    assert run("resume", failed.id) == "queued"
    run("cancel", failed.id)
    assert run("delete", failed.id, "--purge") == ""
    assert [job.id for job in client.jobs.list().data] == [again]


def test_the_commands_know_a_sweep_by_its_id(url: str, key: str, client: Client, sweep_spec: SweepSpec) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--url", url, "--api-key", key])
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    sweep = client.sweeps.create(sweep_spec)
    assert json.loads(run("cancel", sweep.id, "--json"))["status"] == "cancelled"
    assert run("resume", sweep.id) == "queued"
    assert json.loads(run("sweep", "cancel", sweep.id, "--json"))["id"] == sweep.id
    assert "cancelled" in run("events", sweep.id)
    assert json.loads(run("artifacts", sweep.id, "--json")) == []
    assert json.loads(run("delete", sweep.id, "--json")) == {"id": sweep.id, "deleted": True}
    assert client.sweeps.list().data == []
