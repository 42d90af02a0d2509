"""Progress of preparation as events, with the time that a task still needs."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs import driver
from service.spec.event import Event
from service.store.progress import fold_progress


class Events:
    def __init__(self) -> None:
        self.emitted: list[Event] = []

    def emit(self, type: Any, stage: Any = None, **data: Any) -> None:
        self.emitted.append(Event(type=type, stage=stage, data=data))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(driver.time, "monotonic", lambda: now[0])
    return now


def test_the_time_to_the_end_follows_from_the_pace_of_this_start(clock: list[float]) -> None:
    events = Events()
    progress = driver.PrepareProgress(events)  # type: ignore[arg-type]
    told = []
    for now, done in ((100, 20), (102, 21), (110, 25), (111, 30)):  # 20 were there already
        clock[0] = now
        progress("pack train", done, 30, "shards")
        told.append(events.emitted[-1].data["eta_s"])
    assert told == [None, 18, 10, 0]
    clock[0] = 120
    progress("pack held-out", 1, None, "shards")
    assert events.emitted[-1].data["eta_s"] is None, "of how many is not known"


def test_the_time_to_the_end_is_kept_until_the_next_stage() -> None:
    data: dict[str, Any] = {"task": "pack", "done": 1, "total": 2, "unit": "shards", "eta_s": 3.0}
    folded = fold_progress({}, Event(type="stage.progress", stage="prepare", data=data))
    assert {key: value for key, value in folded.items() if key not in ("stages", "telemetry")} == {
        "stage": "prepare",
        **data,
    }
    assert fold_progress(folded, Event(type="stage.started", stage="train"))["eta_s"] is None
    assert fold_progress(folded, Event(type="train.step", data={"step": 1, "eta_s": 9.0}))["eta_s"] == 9
