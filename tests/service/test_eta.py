"""An end that moves away is told, once for each time that it moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from service.spec.event import Event
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.eta import LATE_S, watch_eta
from service.store.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = 3600.0


def step(number: int, at_s: float, eta_s: float | None, total: int = 1000) -> Event:
    data: dict[str, Any] = {"step": number, "total_steps": total, "eta_s": eta_s}
    return Event(type="train.step", stage="train", attempt=2, time=START + timedelta(seconds=at_s), data=data)


def warnings_of(*events: Event) -> list[Event]:
    progress: dict[str, Any] = {}
    found = []
    for event in events:
        progress, warning = watch_eta(progress, event)
        found.append(warning)
    return [warning for warning in found if warning is not None]


def test_what_is_late_by_more_than_a_fifth_is_told_and_holds_from_then_on() -> None:
    told = step(20, 0, 10 * HOUR)
    assert warnings_of(told, step(30, HOUR, 9 * HOUR), step(40, HOUR, 10.9 * HOUR)) == [], "within a fifth"
    [warning] = warnings_of(told, step(30, HOUR, 11.5 * HOUR), step(40, HOUR, 11.6 * HOUR))
    assert (warning.type, warning.stage, warning.attempt) == ("job.warning", "train", 2)
    assert warning.data == {
        "kind": "eta_slipped",
        "told": (START + timedelta(hours=10)).isoformat(),
        "expected": (START + timedelta(hours=12.5)).isoformat(),
        "late_s": 2.5 * HOUR,
    }
    assert warning.message == "training is to end 150 minutes later than was told, at 2026-01-01 12:30 UTC"
    again = warnings_of(told, step(30, HOUR, 11.5 * HOUR), step(40, HOUR, 15 * HOUR))
    assert [warning.data["late_s"] for warning in again] == [2.5 * HOUR, 3.5 * HOUR]


def test_minutes_and_first_guesses_do_not_count() -> None:
    assert warnings_of(step(20, 0, 60), step(30, 0, 60 + LATE_S)) == []
    assert len(warnings_of(step(20, 0, 60), step(30, 0, 61 + LATE_S))) == 1
    assert warnings_of(step(1, 0, 60), step(19, 0, HOUR), step(20, 0, 5 * HOUR)) == []
    assert len(warnings_of(step(2, 0, 60, total=40), step(3, 0, HOUR, total=40))) == 1, "a short job settles sooner"
    assert warnings_of(step(20, 0, None), step(30, 0, None)) == []


def test_the_warning_is_among_the_jobs_events_behind_its_step(store: Store, spec: JobSpec) -> None:
    job, _ = store.create(Job, spec, "file:///runs")
    store.ingest_segment(job.id, "one", [step(20, 0, HOUR)])
    for _ in range(2):  # as after a crash
        store.ingest_segment(job.id, "two", [step(30, HOUR, HOUR), step(31, HOUR, HOUR)])
    types = [event.type for event in store.list_events(Job, job.id)[0]]
    assert types == ["job.status", "train.step", "train.step", "job.warning", "train.step"]
    found = store.get(Job, job.id)
    assert (found.progress.step, found.progress.eta_s) == (31, HOUR)
