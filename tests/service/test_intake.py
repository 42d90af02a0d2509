from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from ray_jobs.run_directory import RunDirectory, write_file
from service.intake import Intake
from service.look_record import LookRecord
from service.spec.event import EVENTS_DIRECTORY, Event, segment_group, segment_name
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.store import Store

TEN_MINUTES_NS = 600 * 10**9


@pytest.fixture
def job(store: Store, spec: JobSpec, tmp_path: Path) -> Job:
    return store.create(Job, spec, str(tmp_path / "runs"))[0]


def say(job: Job, name: str, message: str) -> None:
    content = Event(type="job.warning", message=message).model_dump_json().encode()
    write_file(RunDirectory(job.run_url).join(EVENTS_DIRECTORY, name), content)


def told(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.list_events(Job, job.id)[0] if event.type == "job.warning"]


def test_names_sort_by_time_whichever_group_they_are_in() -> None:
    names = [segment_name(second * 10**9, "a1-driver", 0) for second in range(0, 90_000, 61)]
    assert names == sorted(names)
    assert len({segment_group(name) for name in names}) == 150
    assert segment_group("00000000000000000000-a1-driver-00000000.jsonl") == ""


def test_segments_of_all_groups_and_of_an_earlier_version_are_taken_once(store: Store, job: Job) -> None:
    say(job, "00000000000000000001-a1-driver-00000000.jsonl", "of an earlier version")
    for group in range(3):
        say(job, segment_name(group * TEN_MINUTES_NS, "a1-driver", group), f"group {group}")
    intake = Intake(store, LookRecord())
    for _ in range(2):
        assert intake.try_to_take(job)
    assert told(store, job) == ["of an earlier version", "group 0", "group 1", "group 2"]
    assert intake.num_taken(job.id) == 4
    assert Intake(store, LookRecord()).try_to_take(job)
    assert len(told(store, job)) == 4, "nor by another, which knows them from the store"


def test_only_the_newest_groups_are_looked_at_until_all_are_asked_for(
    store: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in range(20):
        say(job, segment_name(group * TEN_MINUTES_NS, "a1-driver", group), f"group {group}")
    intake = Intake(store, LookRecord())
    intake.try_to_take(job)
    say(job, segment_name(3 * TEN_MINUTES_NS, "a1-trainer", 0), "late by hours")
    say(job, segment_name(18 * TEN_MINUTES_NS, "a1-trainer", 1), "late by minutes")
    say(job, segment_name(21 * TEN_MINUTES_NS, "a1-trainer", 2), "after a pause")
    listed: list[str] = []
    ls = LocalFileSystem.ls
    monkeypatch.setattr(LocalFileSystem, "ls", lambda self, path, **rest: listed.append(path) or ls(self, path, **rest))
    intake.try_to_take(job)
    assert told(store, job)[20:] == ["late by minutes", "after a pause"]
    assert len(listed) == 1 + 3
    intake.try_to_take(job, all_groups=True)
    assert told(store, job)[20:] == ["late by minutes", "after a pause", "late by hours"]
