from __future__ import annotations

import time
from pathlib import Path

import pytest

from ray_jobs.report import read_events
from ray_jobs.run_directory import EventWriter, RunDirectory
from service.spec.event import EVENTS_DIRECTORY


def test_events_wait_while_the_directory_refuses_them(tmp_path: Path) -> None:
    run, in_the_way = RunDirectory(str(tmp_path)), tmp_path / EVENTS_DIRECTORY
    in_the_way.write_text("a file where the directory belongs")
    with EventWriter(run, "driver", 1, flush_interval_s=0.02) as events:
        events.emit("job.started")
        time.sleep(0.2)
        events.emit("stage.started", stage="prepare")
        in_the_way.unlink()
        deadline = time.monotonic() + 10
        while not in_the_way.exists() or not read_events(run):
            assert time.monotonic() < deadline, "the writer gave up"
            time.sleep(0.02)
        events.emit("stage.finished", stage="prepare")
    assert [event.type for event in read_events(run)] == ["job.started", "stage.started", "stage.finished"]


def test_closing_says_that_events_were_lost(tmp_path: Path) -> None:
    (tmp_path / EVENTS_DIRECTORY).write_text("a file where the directory belongs")
    events = EventWriter(RunDirectory(str(tmp_path)), "driver", 1)
    events.emit("job.started")
    with pytest.raises(OSError, match=EVENTS_DIRECTORY):
        events.close()


def test_a_writer_with_nothing_to_say_says_that_it_lives_and_one_that_speaks_does_not(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    with EventWriter(run, "driver", 1, flush_interval_s=0.01, alive_interval_s=2.0) as events:
        for _ in range(30):
            events.emit("stage.progress", stage="prepare")
            time.sleep(0.1)
        assert {event.type for event in read_events(run)} == {"stage.progress"}
        deadline = time.monotonic() + 60
        while read_events(run)[-1].type != "job.alive":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with EventWriter(run, "trainer", 1, flush_interval_s=0.01):
        time.sleep(0.1)
    assert [event.type for event in read_events(run)].count("job.alive") == 1, "of those that are not asked to, none"
