from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.attempts import Limits
from service.reconcile import Reconciler
from service.spec.event import EventType
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def job(store: Store, spec: JobSpec, tmp_path: Path) -> Job:
    return store.create(Job, spec, str(tmp_path / "runs"))[0]


def look(reconciler: Reconciler, times: int = 1) -> None:
    for _ in range(times):
        reconciler.reconcile()


def test_a_job_is_stored_as_submitting_before_it_is_submitted(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler)
    assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == ("submitting", 1)
    assert backend.submitted == []
    look(reconciler)
    assert store.get(Job, job.id).status == "running"
    assert backend.submitted == [f"{job.id}-a1"]
    assert RunDirectory(job.run_url).read_spec() == JobSpec.model_validate(job.spec)


def test_a_crash_between_submit_and_its_record_submits_the_same_attempt_again(
    store: Store, backend: RecordingBackend, job: Job
) -> None:
    def fresh() -> Reconciler:
        return Reconciler(store, backend, max_running_jobs=1, interval_s=60.0)

    look(fresh())
    backend.submit(f"{job.id}-a1", "job", job.run_url, 1, job.spec_sha256)  # and then the control plane died
    look(fresh())
    assert set(backend.submitted) == {f"{job.id}-a1"}
    assert store.get(Job, job.id).status == "running"


def test_an_outage_changes_nothing(store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job) -> None:
    look(reconciler, 2)
    backend.is_down = True
    look(reconciler, 3)
    assert store.get(Job, job.id).status == "running"
    backend.is_down = False
    look(reconciler)
    assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == ("running", 1)


def test_a_lost_attempt_is_followed_by_another_and_then_given_up(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    for attempt in (1, 2):
        del backend.states[f"{job.id}-a{attempt}"]
        look(reconciler, 2)
        assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == ("running", attempt + 1)
    backend.states[f"{job.id}-a3"] = ("failed", "killed")
    look(reconciler)
    failed = store.get(Job, job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.fault) == ("driver_lost", "infrastructure")
    assert "killed" in failed.error.message


def test_the_history_tells_every_change_of_state_and_why(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    del backend.states[f"{job.id}-a1"]
    look(reconciler, 2)
    store.request_cancel(Job, job.id)
    backend.states[f"{job.id}-a2"] = ("stopped", "")
    look(reconciler)
    told = [event for event in store.list_events(Job, job.id)[0] if event.type == "job.status"]
    assert [(event.data["new"], event.attempt, event.data["reason"]) for event in told] == [
        ("queued", 1, ""),
        ("submitting", 1, "its turn has come"),
        ("running", 1, "the cluster has taken it"),
        ("submitting", 2, "Ray no longer knows the driver"),
        ("running", 2, "the cluster has taken it"),
        ("cancelling", 2, "asked to"),
        ("cancelled", 2, "its driver has ended"),
    ]
    assert [event.data["old"] for event in told[1:]] == [event.data["new"] for event in told[:-1]]


def test_a_change_that_came_too_late_leaves_no_event(store: Store, job: Job) -> None:
    assert store.change_status(job, "submitting", attempt=1)
    assert not store.change_status(job, "cancelled"), "it no longer stands as it was seen"
    told = [event.data["new"] for event in store.list_events(Job, job.id)[0]]
    assert told == ["queued", "submitting"]


def test_a_driver_that_says_why_it_failed_is_believed_and_not_repeated(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
        events.emit("job.failed", message="row 7: no", code="bad_row", fault="data", field="data.sources.0.uri")
    backend.states[f"{job.id}-a1"] = ("failed", "exit code 1")
    look(reconciler)
    error = store.get(Job, job.id).error
    assert error is not None
    assert (error.code, error.message, error.field) == ("bad_row", "row 7: no", "data.sources.0.uri")
    assert backend.submitted == [f"{job.id}-a1"]


def say(job: Job, attempt: int, type: EventType, **data: Any) -> None:
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=attempt) as events:
        events.emit(type, **data)


def test_success_needs_the_attempts_own_word(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    backend.states[f"{job.id}-a1"] = ("succeeded", "")
    look(reconciler, 2)
    assert store.get(Job, job.id).attempt == 2, "a driver that ended without a word has not done its work"
    say(job, 1, "job.finished")
    backend.states[f"{job.id}-a2"] = ("succeeded", "")
    look(reconciler, 2)
    assert store.get(Job, job.id).attempt == 3, "nor does an earlier attempt speak for it"
    say(job, 3, "job.finished")
    backend.states[f"{job.id}-a3"] = ("succeeded", "")
    look(reconciler)
    assert store.get(Job, job.id).status == "succeeded"


@pytest.mark.parametrize(("type", "status"), [("job.finished", "succeeded"), ("job.failed", "failed")])
def test_an_attempt_that_ray_forgot_after_its_last_word_is_not_repeated(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job, type: EventType, status: str
) -> None:
    look(reconciler, 2)
    say(job, 1, type, code="bad_row", fault="data")
    backend.states.clear()
    look(reconciler)
    assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == (status, 1)


def test_a_job_is_moved_on_only_from_where_it_was_seen(store: Store, job: Job) -> None:
    assert store.change_status(job, "submitting", attempt=1)
    assert not store.change_status(job, "cancelled"), "its status is no longer the one seen"
    seen = store.get(Job, job.id)
    assert store.change_status(seen, "submitting", attempt=2)
    assert not store.change_status(seen, "running"), "its attempt is no longer the one seen"
    assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == ("submitting", 2)


def test_an_attempt_that_ray_refuses_fails_the_job_and_frees_the_queue(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job, spec: JobSpec, tmp_path: Path
) -> None:
    second, _ = store.create(Job, spec, str(tmp_path / "runs"))
    backend.refused.add(f"{job.id}-a1")
    look(reconciler, 4)
    error = store.get(Job, job.id).error
    assert error is not None
    assert error.code == "conflict"
    assert store.get(Job, second.id).status == "running"


def test_a_segment_that_cannot_be_read_stops_neither_events_nor_a_cancel(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    say(job, 1, "stage.started", stage="train")
    events = Path(job.run_url) / "events"
    (events / "00000000000000000000-a9-future-00000000.jsonl").write_text('{"type": "from.the.future"}\n')
    look(reconciler)
    told = [event.type for event in store.list_events(Job, job.id)[0]]
    assert [name for name in told if name != "job.status"] == ["stage.started"]
    assert len(store.ingested_segments(job.id)) == 2, "it is passed over once and for all"
    shutil.rmtree(events)
    events.write_text("no directory")
    store.request_cancel(Job, job.id)
    look(reconciler)
    assert backend.stopped == [f"{job.id}-a1"]


def test_a_driver_that_started_after_its_job_was_cancelled_is_stopped(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler)
    backend.is_down = True  # Ray takes the submit, but its answer is lost
    look(reconciler)
    backend.is_down = False
    store.request_cancel(Job, job.id)
    look(reconciler)
    assert store.get(Job, job.id).status == "cancelled"
    backend.states |= {f"{job.id}-a1": ("running", ""), "job-0-of-another-store-a1": ("running", "")}
    look(reconciler)
    assert backend.stopped == [f"{job.id}-a1"]


def test_a_driver_of_an_earlier_attempt_is_stopped(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    del backend.states[f"{job.id}-a1"]
    look(reconciler, 2)
    backend.states[f"{job.id}-a1"] = ("running", "")
    look(reconciler)
    assert backend.stopped == [f"{job.id}-a1"]


def test_a_job_cancelled_while_it_was_submitted_is_stopped_at_once(
    store: Store, backend: RecordingBackend, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = Reconciler(store, backend, max_running_jobs=1, interval_s=60.0, unwanted_interval_s=60.0)
    look(reconciler)
    submit = backend.submit

    def submit_while_another_replica_cancels(*arguments: Any) -> None:
        submit(*arguments)
        store.request_cancel(Job, job.id)
        store.change_status(store.get(Job, job.id), "cancelled")

    monkeypatch.setattr(backend, "submit", submit_while_another_replica_cancels)
    look(reconciler)
    assert backend.stopped == [f"{job.id}-a1"]


def test_one_jobs_trouble_is_not_anothers(
    store: Store, backend: RecordingBackend, job: Job, spec: JobSpec, tmp_path: Path
) -> None:
    second, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler = Reconciler(store, backend, max_running_jobs=2, interval_s=60.0)
    (tmp_path / "runs").mkdir()
    Path(job.run_url).write_text("in the way")
    look(reconciler, 2)
    assert [store.get(Job, item.id).status for item in (job, second)] == ["submitting", "running"]


@pytest.mark.parametrize(
    ("type", "data"),
    [
        ("train.step", {"step": 21, "total_steps": 400, "memory_bytes": 0.5}),
        ("train.step", {"step": 21, "total_steps": 400, "eta_s": 1e300}),
        ("train.step", {"step": "the first"}),
        ("train.step", {"step": 21, "total_steps": 400, "router_entropy_per_layer": [10**400]}),
        ("stage.progress", {"task": "pack", "done": "many"}),
        ("stage.finished", {"duration_s": "long"}),
    ],
)
def test_an_event_that_says_nonsense_of_progress_is_kept_and_hides_no_job(
    store: Store, backend: RecordingBackend, job: Job, type: EventType, data: dict[str, Any]
) -> None:
    reconciler = Reconciler(store, backend, max_running_jobs=1, interval_s=60.0)
    look(reconciler, 2)
    with EventWriter(RunDirectory(job.run_url), "trainer", 1) as events:
        events.emit("train.step", stage="train", step=20, total_steps=400, eta_s=60.0)
        events.emit(type, stage="train", **data)
        events.emit("job.finished", report="report.json")
    backend.states[f"{job.id}-a1"] = ("succeeded", "")
    look(reconciler)
    done = store.get(Job, job.id)
    assert done.status == "succeeded"
    assert done.progress.step in (20, 21)
    [kept] = [event for event in store.list_events(Job, job.id)[0] if event.type == type and event.data == data]
    assert kept.stage == "train"


def test_cancelling_stops_until_the_cluster_says_so(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    store.request_cancel(Job, job.id)
    look(reconciler, 2)
    assert store.get(Job, job.id).status == "cancelling"
    assert backend.stopped == [f"{job.id}-a1"] * 2
    backend.states[f"{job.id}-a1"] = ("stopped", "")
    look(reconciler)
    assert store.get(Job, job.id).status == "cancelled"


def test_one_runs_while_others_wait(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, spec: JobSpec, job: Job, tmp_path: Path
) -> None:
    second, _ = store.create(Job, spec, str(tmp_path / "runs"))
    look(reconciler, 3)
    assert [store.get(Job, item.id).status for item in (job, second)] == ["running", "queued"]
    store.request_cancel(Job, job.id)
    backend.states[f"{job.id}-a1"] = ("stopped", "")
    look(reconciler, 3)
    assert [store.get(Job, item.id).status for item in (job, second)] == ["cancelled", "running"]


def test_two_replicas_racing_submit_once_and_ingest_once(store: Store, backend: RecordingBackend, job: Job) -> None:
    replicas = [Reconciler(store, backend, max_running_jobs=1, interval_s=60.0) for _ in range(4)]
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
        for step in range(1, 51):
            events.emit("train.step", stage="train", step=step, total_steps=50, loss=1.0)
            events.flush()
    threads = [threading.Thread(target=look, args=(replica, 4)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(backend.submitted) == {f"{job.id}-a1"}, "submitting it again is what the backend recognises"
    assert backend.stopped == []
    assert store.get(Job, job.id).attempt == 1
    stored, _ = store.list_events(Job, job.id)
    assert [event.data["step"] for event in stored if event.type == "train.step"] == list(range(1, 51))
    assert [event.data["new"] for event in stored if event.type == "job.status"] == ["queued", "submitting", "running"]
    assert [event.sequence for event in stored] == list(range(1, 54))


def fail(job: Job, attempt: int, **data: Any) -> None:
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=attempt) as events:
        events.emit("job.failed", message="no room on the disk", **data)


def test_a_fault_of_the_infrastructure_is_tried_again_and_then_believed(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job
) -> None:
    look(reconciler, 2)
    for attempt in (1, 2):
        fail(job, attempt, code="storage_unavailable", fault="infrastructure")
        backend.states[f"{job.id}-a{attempt}"] = ("failed", "exit code 1")
        look(reconciler, 2)
        assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == ("running", attempt + 1)
    fail(job, 3, code="storage_unavailable", fault="infrastructure")
    backend.states[f"{job.id}-a3"] = ("failed", "exit code 1")
    look(reconciler)
    error = store.get(Job, job.id).error
    assert error is not None
    assert (error.code, error.message) == ("storage_unavailable", "no room on the disk, 3 times")


@pytest.mark.parametrize("fault", ["user", "data", "numerics"])
def test_what_another_attempt_cannot_mend_is_final(
    store: Store, reconciler: Reconciler, backend: RecordingBackend, job: Job, fault: str
) -> None:
    look(reconciler, 2)
    fail(job, 1, code="non_finite_loss", fault=fault)
    backend.states[f"{job.id}-a1"] = ("failed", "exit code 1")
    look(reconciler, 2)
    assert (store.get(Job, job.id).status, store.get(Job, job.id).attempt) == ("failed", 1)


class Clock:
    """Shows what it is set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_attempt_waits_longer_than_the_one_before(store: Store, backend: RecordingBackend, job: Job) -> None:
    clock = Clock()
    limits = Limits(max_attempts=4, backoff_s=2.0)
    reconciler = Reconciler(store, backend, max_running_jobs=1, interval_s=60.0, limits=limits, clock=clock)
    look(reconciler, 2)
    for attempt, pause_s in ((2, 2.0), (3, 8.0), (4, 32.0)):
        backend.states.clear()
        look(reconciler, 2)
        clock.now += pause_s - 0.1
        look(reconciler)
        assert backend.submitted[-1] == f"{job.id}-a{attempt - 1}"
        clock.now += 0.2
        look(reconciler)
        assert backend.submitted[-1] == f"{job.id}-a{attempt}"


def test_a_driver_that_ray_never_starts_is_lost_when_its_time_is_up_and_an_outage_is_not_counted(
    store: Store, backend: RecordingBackend, job: Job
) -> None:
    clock = Clock()
    limits = Limits(max_attempts=1, start_timeout_s=600.0)
    reconciler = Reconciler(store, backend, max_running_jobs=1, interval_s=60.0, limits=limits, clock=clock)
    look(reconciler, 2)
    backend.states[f"{job.id}-a1"] = ("pending", "")
    look(reconciler)
    clock.now += 599
    backend.is_down = True
    look(reconciler)
    backend.is_down = False
    look(reconciler)
    clock.now += 599
    look(reconciler)
    assert store.get(Job, job.id).status == "running"
    clock.now += 2
    look(reconciler)
    error = store.get(Job, job.id).error
    assert error is not None
    assert (error.code, error.message) == ("driver_lost", "Ray did not start the driver within 600 s")
    assert backend.stopped == [f"{job.id}-a1"]


def test_a_driver_that_says_nothing_is_lost_whatever_ray_believes(
    store: Store, backend: RecordingBackend, job: Job
) -> None:
    clock = Clock()
    limits = Limits(max_attempts=1, silence_timeout_s=600.0)
    reconciler = Reconciler(store, backend, max_running_jobs=1, interval_s=60.0, limits=limits, clock=clock)
    look(reconciler, 2)
    backend.states[f"{job.id}-a1"] = ("running", "")

    def silent(seconds: float) -> str:
        clock.now += seconds
        look(reconciler)
        return store.get(Job, job.id).status

    silent(0)
    assert silent(599) == "running"
    with EventWriter(RunDirectory(job.run_url), "driver", 1) as events:
        events.emit("job.alive")
    assert silent(2) == "running", "it has spoken"
    backend.is_down = True
    silent(599)
    backend.is_down = False
    assert silent(2) == "running", "it was not Ray alone that was silent"
    unreadable = Path(job.run_url, "events", "unreadable.jsonl")
    unreadable.mkdir()
    silent(599)
    unreadable.rmdir()
    assert silent(2) == "running", "what it said could not be read"
    assert backend.stopped == []
    assert silent(601) == "failed"
    error = store.get(Job, job.id).error
    assert error is not None
    assert (error.code, error.message) == ("driver_lost", "its driver has said nothing for 600 s")
    assert set(backend.stopped) == {f"{job.id}-a1"}


def test_a_cancel_that_ray_does_not_carry_out_ends_all_the_same(
    store: Store, backend: RecordingBackend, job: Job
) -> None:
    clock = Clock()
    reconciler = Reconciler(store, backend, max_running_jobs=1, interval_s=60.0, unwanted_interval_s=0.0, clock=clock)
    look(reconciler, 2)
    store.request_cancel(Job, job.id)
    look(reconciler)
    clock.now += 61
    look(reconciler)
    assert store.get(Job, job.id).status == "cancelled"
    backend.stopped.clear()
    clock.now += 1
    look(reconciler)
    assert backend.stopped == [f"{job.id}-a1"], "and is stopped whenever it is seen"
