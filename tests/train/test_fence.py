"""Who may write to a run directory, when several believe that they may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import ray_jobs.driver
from ray_jobs.driver import drive
from ray_jobs.fence import Fence, claim_attempt, claim_start
from ray_jobs.report import read_events
from ray_jobs.run_directory import EventWriter, RunDirectory
from service.errors import SupersededError
from service.spec.event import Event
from tests.processes import start_process
from tests.train.replaced_worker import CHECKPOINT_EVERY_STEPS, newest_state, work

NUM_STEPS = 100


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    return RunDirectory(f"{tmp_path}/run" if request.param == "file" else f"memory://fence{tmp_path}/run")


def test_an_attempt_is_started_once(tmp_path: Path) -> None:
    run = RunDirectory(f"{tmp_path}/run")
    with ThreadPoolExecutor(8) as drivers:
        claims = list(drivers.map(lambda _: claim_attempt(run, 1), range(8)))
    assert claims.count(True) == 1
    assert claim_attempt(run, 2)
    remote = RunDirectory("memory://claims/run")
    assert [claim_attempt(remote, 1), claim_attempt(remote, 1)] == [True, False]


def test_each_start_of_the_workers_has_a_number_of_its_own(run: RunDirectory) -> None:
    with ThreadPoolExecutor(8) as drivers:
        claims = list(drivers.map(lambda _: claim_start(run, 1), range(8)))
    assert sorted(claims) == list(range(1, 9))
    assert claim_attempt(run, 2)
    assert [claim_start(run, 2), claim_start(run, 2)] == [1, 2]
    with pytest.raises(SupersededError, match="attempt 1 was given up, and attempt 2, start 2 of its workers,"):
        claim_start(run, 1)


def may_write(run: RunDirectory, attempt: int, start: int | None = None) -> bool:
    try:
        Fence(run, attempt, start).check()
    except SupersededError:
        return False
    return True


def test_only_the_last_ones_started_may_write(run: RunDirectory) -> None:
    assert may_write(run, 1, 1), "before anything was marked"
    claim_attempt(run, 9)
    claim_start(run, 9)
    claim_start(run, 9)
    assert [may_write(run, 9, start) for start in (None, 1, 2)] == [True, False, True]
    claim_attempt(run, 10)
    assert not any(may_write(run, 9, start) for start in (None, 1, 2)), "ten is more than nine"
    assert may_write(run, 10)


def go_on(events: EventWriter) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.02)
        events.emit("train.step", step=3)


def test_a_writer_that_was_replaced_keeps_silent_and_says_so_to_its_process(tmp_path: Path) -> None:
    run = RunDirectory(f"{tmp_path}/run")
    start = claim_start(run, 1)
    events = EventWriter(run, "worker0", 1, flush_interval_s=0.01, fence=Fence(run, 1, start))
    events.emit("train.step", step=1)
    events.flush()
    claim_start(run, 1)
    events.emit("train.step", step=2)
    with pytest.raises(SupersededError, match="start 1 of the workers of attempt 1 was given up"):
        go_on(events)
    with pytest.raises(SupersededError):
        events.close()
    assert [event.data["step"] for event in read_events(run)] == [1]


def test_a_driver_of_an_attempt_that_was_given_up_ends_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def work(run: RunDirectory, events: EventWriter, _attempt: int) -> str:
        claim_attempt(run, 2)
        events.emit("stage.started", stage="prepare")
        events.flush()
        raise AssertionError("it went on")

    monkeypatch.setattr(ray_jobs.driver.ray, "init", lambda **_: None)
    assert drive("a_driver", work, ["--run-url", f"{tmp_path}/run", "--attempt", "1"]) == 1
    assert [event.type for event in read_events(RunDirectory(f"{tmp_path}/run"))] == ["job.started"]
    assert "attempt 1 was given up, and attempt 2 has taken its place" in caplog.text


class Groups:
    """Two workers on one directory: the driver took the first for lost, and it was not."""

    def __init__(self, run: RunDirectory, *, is_fenced: bool) -> None:
        self.run, self.is_fenced = run, is_fenced
        self.processes: list[BaseProcess] = []

    def start(self, num_steps: int) -> BaseProcess:
        arguments = (self.run.url, claim_start(self.run, 1), num_steps)
        process = start_process(partial(work, is_fenced=self.is_fenced), *arguments)
        self.processes.append(process)
        return process

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 60
        while newest_state(self.run).step < step:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def replace_one_that_lives(self) -> list[Event]:
        """Returns what both told."""
        self.start(10**9)
        self.wait_for_step(3 * CHECKPOINT_EVERY_STEPS)
        second = self.start(NUM_STEPS)
        second.join(60)
        assert second.exitcode == 0
        return read_events(self.run)

    def last_words(self, start: int) -> str:
        return Path(self.run.join(f"ended-{start}")).read_text()


@pytest.fixture
def groups(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Groups]:
    groups = Groups(RunDirectory(f"{tmp_path}/run"), is_fenced=getattr(request, "param", True))
    yield groups
    for process in groups.processes:
        process.kill()
        process.join()


def assert_no_step_was_told_by_two(events: list[Event]) -> None:
    """Behind each start, one step after another, to the last."""
    starts = [index for index, event in enumerate(events) if event.type == "train.started"]
    assert len(starts) == 2
    told = [event.data["step"] for event in events[starts[1] :] if event.type == "train.step"]
    first = int(events[starts[1]].data["start_step"])  # type: ignore[arg-type]
    assert told == list(range(first + 1, first + NUM_STEPS + 1))


def test_a_worker_that_lives_on_beside_its_replacement_ends_itself_with_the_reason(groups: Groups) -> None:
    events = groups.replace_one_that_lives()
    groups.processes[0].join(60)
    assert groups.last_words(1).startswith("start 1 of the workers of attempt 1 was given up, and attempt 1, start 2")
    assert groups.last_words(2) == "all steps are done"
    assert_no_step_was_told_by_two(events)
    left = Path(groups.run.join("checkpoints")).glob("attempt-1/*")
    assert len({path.name.partition("-")[2] for path in left}) == 1, "of one group, and the second has saved its last"


@pytest.mark.parametrize("groups", [False], indirect=True)
def test_without_the_fence_both_tell_the_same_steps(groups: Groups) -> None:
    events = groups.replace_one_that_lives()
    assert groups.processes[0].is_alive()
    with pytest.raises(AssertionError):
        assert_no_step_was_told_by_two(events)
