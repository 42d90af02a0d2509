"""A cluster whose drivers are done at once: it leaves what a run leaves, so that the pages' examples come to their end.

The control plane beside it is the real one. What real drivers write is tested with real ones, in `tests/system`.
"""

from __future__ import annotations

from pathlib import Path

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.spec.resources import RunKind
from service.spec.sweep_results import REPORT_PAGE_FILE, SWEEP_FILE, SweepResults
from tests.service.recording_backend import RecordingBackend


class QuickCluster(RecordingBackend):
    """Jobs named `unlucky` fail in their first three attempts, as if the storage were away.

    Args:
        results: what each sweep finds.
    """

    def __init__(self, results: SweepResults) -> None:
        super().__init__()
        self._results = results

    def submit(self, submission_id: str, kind: RunKind, run_url: str, attempt: int, spec_sha256: str) -> None:
        super().submit(submission_id, kind, run_url, attempt, spec_sha256)
        run = RunDirectory(run_url)
        if kind == "sweep":
            self._sweep(run)
        elif run.read_spec().name == "unlucky" and attempt <= 3:
            with EventWriter(run, "driver", attempt) as events:
                events.emit(
                    "job.failed", message="the storage is away", code="storage_unavailable", fault="infrastructure"
                )
            self.states[submission_id] = ("failed", "")
            return
        else:
            self._job(run, attempt)
        self.states[submission_id] = ("succeeded", "")

    def _job(self, run: RunDirectory, attempt: int) -> None:
        export = f"exports/attempt-{attempt}-5e6f7081"
        run.write_json(f"{export}/config.json", {"architectures": ["ArcticForCausalLM"]})
        run.write_json(f"{export}.json", {"attempt": attempt})
        losses = {"before": {"general": 8.0}, "after": {"general": 4.0}}
        report = run.write_report({"held_out": losses, "export": {"path": run.join(export)}})
        with EventWriter(run, "driver", attempt) as events:
            events.emit("stage.started", stage="train")
            for step in (1, 2):
                figures = {"loss": 9.0 - step, "learning_rate": 1e-3, "trained_tokens": 10, "eta_s": 0.0}
                events.emit("train.step", stage="train", step=step, total_steps=2, **figures)
            events.emit("checkpoint.saved", stage="train", step=2, path="attempt-1/step-2")
            events.emit("job.finished", report=report)

    def _sweep(self, run: RunDirectory) -> None:
        (Path(run.url) / SWEEP_FILE).write_text(self._results.model_dump_json())
        (Path(run.url) / REPORT_PAGE_FILE).write_text("<html></html>")
        with EventWriter(run, "driver", 1) as events:
            events.emit("job.finished", report=run.join(REPORT_PAGE_FILE))
