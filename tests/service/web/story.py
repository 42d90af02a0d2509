"""Fills a store as a cluster would: a finished job, a running one, sweeps. The test plays their drivers.

The figures are those of the quickstart and of its sweep, as a run of each on two CPUs gave them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.api.dependencies import ControlPlane
from service.spec.job import JobSpec
from service.spec.resources import Job, Sweep
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import REPORT_PAGE_FILE, SWEEP_FILE, SweepResults
from tests.service.recording_backend import RecordingBackend

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((HERE / name).read_text())
    return document


@dataclass
class Cluster:
    """Runs what is posted as the test says."""

    parts: ControlPlane
    backend: RecordingBackend

    def look(self) -> None:
        """The control plane takes in what has happened."""
        self.parts.reconciler.reconcile()
        self.parts.reconciler.reconcile()

    def start_job(self, **changes: Any) -> Job:
        spec = JobSpec.model_validate(read("finished_job.json")["spec"] | changes)
        job, _ = self.parts.store.create(Job, spec, self.parts.runs_url)
        self.look()
        return self.parts.store.get(Job, job.id)

    def tell(self, run: Job | Sweep, events: list[dict[str, Any]]) -> None:
        """A driver tells events."""
        with EventWriter(RunDirectory(run.run_url), "driver", attempt=max(run.attempt, 1)) as writer:
            for event in events:
                writer.emit(event["type"], stage=event.get("stage"), message=event.get("message", ""), **event["data"])
        self.look()

    def end(self, run: Job | Sweep, state: str = "succeeded", message: str = "") -> None:
        """A driver ends."""
        self.backend.states[f"{run.id}-a{max(run.attempt, 1)}"] = (state, message)  # type: ignore[assignment]
        self.look()

    def finished_job(self) -> Job:
        job, history = self.start_job(), read("finished_job.json")
        directory = RunDirectory(job.run_url)
        for when, figures in history["routing"].items():
            directory.write_json(f"evals/{when}-routing.json", figures)
        directory.write_report(history["report"])
        self.tell(job, history["events"])
        self.end(job)
        return job

    def running_job(self, num_steps: int = 60, **changes: Any) -> Job:
        job, history = self.start_job(**changes), read("finished_job.json")
        directory = RunDirectory(job.run_url)
        directory.write_json("evals/before-routing.json", history["routing"]["before"])
        self.tell(job, events_until(num_steps))
        return job

    def failed_job(self) -> Job:
        job = self.start_job(name="broken")
        message = "tickets.jsonl row 17: the conversation ends with a user's turn"
        failure = {
            "type": "job.failed",
            "message": message,
            "data": {"code": "bad_row", "fault": "data", "field": None},
        }
        self.tell(job, [{"type": "job.started", "data": {}}, {"type": "stage.started", "stage": "prepare", "data": {}}])
        self.tell(job, [failure])
        self.end(job, "failed")
        return job

    def start_sweep(self, **changes: Any) -> Sweep:
        spec = SweepSpec.model_validate(read("finished_sweep.json")["spec"] | changes)
        sweep, _ = self.parts.store.create(Sweep, spec, self.parts.runs_url)
        self.look()
        return self.parts.store.get(Sweep, sweep.id)

    def write_results(self, sweep: Sweep, results: dict[str, Any]) -> None:
        RunDirectory(sweep.run_url).write_json(SWEEP_FILE, SweepResults.model_validate(results).model_dump(mode="json"))

    def finished_sweep(self) -> Sweep:
        sweep, results = self.start_sweep(), read("finished_sweep.json")["results"]
        self.write_results(sweep, results)
        (Path(sweep.run_url) / REPORT_PAGE_FILE).write_text("<!doctype html><title>What the sweep found</title>")
        progress = {"round": 0, "trials_ended": 18, "trials_planned": 18, "best": results["best"], "best_score": 0.0203}
        self.tell(
            sweep,
            [{"type": "sweep.progress", "stage": "proxy-3m", "data": progress}, {"type": "job.finished", "data": {}}],
        )
        self.end(sweep)
        return sweep


def events_until(num_steps: int) -> list[dict[str, Any]]:
    """Those of the finished job, up to a step."""
    events: list[dict[str, Any]] = read("finished_job.json")["events"]
    last = next(place for place, event in enumerate(events) if event["data"].get("step") == num_steps)
    return events[: last + 1]


def step_events(first: int, last: int) -> list[dict[str, Any]]:
    """The steps of the finished job from `first` to `last`."""
    events = read("finished_job.json")["events"]
    return [event for event in events if event["type"] == "train.step" and first <= event["data"]["step"] <= last]
