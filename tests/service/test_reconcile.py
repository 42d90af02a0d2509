from __future__ import annotations

import threading

import pytest

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def job(store: Store, spec: JobSpec, tmp_path) -> Job:  # type: ignore[no-untyped-def]
    return store.create_job(spec, str(tmp_path / "runs"))[0]


def look(reconciler: Reconciler, times: int = 1) -> None:
    for _ in range(times):
        reconciler.reconcile()


def test_a_job_is_stored_as_submitting_before_it_is_submitted(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler)
    assert (store.get_job(job.id).status, store.get_job(job.id).attempt) == ("submitting", 1)
    assert backend.submitted == []
    look(reconciler)
    assert store.get_job(job.id).status == "running"
    assert backend.submitted == [f"{job.id}-a1"]
    assert RunDirectory(job.run_url).read_spec() == job.spec


def test_a_crash_between_submit_and_its_record_submits_the_same_attempt_again(
    store: Store, backend: RecordingBackend, job: Job
) -> None:
    def fresh() -> Reconciler:
        return Reconciler(store, backend, max_running_jobs=1, max_attempts=3, interval_s=60.0)

    look(fresh())
    backend.submit(f"{job.id}-a1", job.run_url, 1, job.spec.sha256())  # and then the control plane died
    look(fresh())
    assert set(backend.submitted) == {f"{job.id}-a1"}
    assert store.get_job(job.id).status == "running"


def test_an_outage_changes_nothing(store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job) -> None:
    look(reconciler, 2)
    backend.is_down = True
    look(reconciler, 3)
    assert store.get_job(job.id).status == "running"
    backend.is_down = False
    look(reconciler)
    assert (store.get_job(job.id).status, store.get_job(job.id).attempt) == ("running", 1)


def test_a_lost_attempt_is_followed_by_another_and_then_given_up(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    for attempt in (1, 2):
        del backend.states[f"{job.id}-a{attempt}"]
        look(reconciler, 2)
        assert (store.get_job(job.id).status, store.get_job(job.id).attempt) == ("running", attempt + 1)
    backend.states[f"{job.id}-a3"] = ("failed", "killed")
    look(reconciler)
    failed = store.get_job(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.fault) == ("driver_lost", "infrastructure")
    assert "killed" in failed.error.message


def test_a_driver_that_says_why_it_failed_is_believed_and_not_repeated(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
        events.emit("job.failed", message="row 7: no", code="bad_row", fault="data", field="data.sources.0.uri")
    backend.states[f"{job.id}-a1"] = ("failed", "exit code 1")
    look(reconciler)
    error = store.get_job(job.id).error
    assert error is not None
    assert (error.code, error.message, error.field) == ("bad_row", "row 7: no", "data.sources.0.uri")
    assert backend.submitted == [f"{job.id}-a1"]


def test_success_needs_a_report(store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job) -> None:
    look(reconciler, 2)
    backend.states[f"{job.id}-a1"] = ("succeeded", "")
    look(reconciler)
    assert store.get_job(job.id).attempt == 2, "a driver that ended without its report has not done its work"


def test_cancelling_stops_until_the_cluster_says_so(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    store.request_cancel(job.id)
    look(reconciler, 2)
    assert store.get_job(job.id).status == "cancelling"
    assert backend.stopped == [f"{job.id}-a1"] * 2
    backend.states[f"{job.id}-a1"] = ("stopped", "")
    look(reconciler)
    assert store.get_job(job.id).status == "cancelled"


def test_one_runs_while_others_wait(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, spec: JobSpec, job: Job, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    second, _ = store.create_job(spec, str(tmp_path / "runs"))
    look(reconciler, 3)
    assert [store.get_job(item.id).status for item in (job, second)] == ["running", "queued"]
    store.request_cancel(job.id)
    backend.states[f"{job.id}-a1"] = ("stopped", "")
    look(reconciler, 3)
    assert [store.get_job(item.id).status for item in (job, second)] == ["cancelled", "running"]


def test_two_replicas_racing_submit_once_and_ingest_once(store: Store, backend: RecordingBackend, job: Job) -> None:
    replicas = [Reconciler(store, backend, max_running_jobs=1, max_attempts=3, interval_s=60.0) for _ in range(4)]
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
        for step in range(1, 51):
            events.emit("train.step", stage="train", step=step, total_steps=50, loss=1.0)
            events.flush()
    threads = [threading.Thread(target=look, args=(replica, 4)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(backend.submitted) == {f"{job.id}-a1"}
    assert store.get_job(job.id).attempt == 1
    stored, _ = store.list_events(job.id)
    assert [event.data["step"] for event in stored] == list(range(1, 51))
    assert [event.sequence for event in stored] == list(range(1, 51))
