"""The driver of a fine-tuning job: prepare → train → evaluate → export, each resumable.

Started by the control plane as `python -m ray_jobs.finetune --run-url URL --attempt N`, once per attempt. A killed
driver is started again with the next attempt number and finds what the earlier one finished: prepared data by its
content, training by its newest whole checkpoint, evaluations and export by their committed files. It tells the control
plane nothing; it writes events, and a report at the end.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence

import ray
from transformers import PreTrainedTokenizerFast

from ray_jobs.data.prepare import PreparedData, prepare
from ray_jobs.evaluate.run import read_tasks
from ray_jobs.report import build_report
from ray_jobs.run_directory import EventWriter, RunDirectory, local_directory
from ray_jobs.track.trackers import require_packages
from ray_jobs.train.architecture import model_config
from ray_jobs.train.export import remove_superseded
from ray_jobs.train.loop import WorkerConfig
from ray_jobs.train.model_card import write_model_card
from ray_jobs.train.trainer import train
from service.errors import SleddogError
from service.spec.job import JobSpec

_PROGRESS_INTERVAL_S = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one attempt of a job.

    Returns:
        0 when the job is done; 1 when it failed, the reason being the last event.
    """
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.finetune", description=main.__doc__)
    parser.add_argument("--run-url", required=True, help="run directory, with the job's spec in it")
    parser.add_argument("--attempt", type=int, default=1, help="1 for the first start of the job")
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    run = RunDirectory(options.run_url)
    with EventWriter(run, "driver", options.attempt) as events:
        events.emit("job.started")
        events.flush()
        try:
            ray.init(logging_level=logging.WARNING)
            run_job(run, run.read_spec(), events, options.attempt)
        except Exception as error:
            _report_failure(events, error)
            raise
    return 0


def run_job(run: RunDirectory, spec: JobSpec, events: EventWriter, attempt: int) -> None:
    """All stages of a job; Ray is connected."""
    read_tasks(spec.evaluate)  # a benchmark that cannot be read ends the job before anything is paid for
    require_packages(spec.track)
    prepared = _prepare(run, spec, events)
    with local_directory(prepared.tokenizer_url) as tokenizer:
        vocab_size = len(PreTrainedTokenizerFast.from_pretrained(tokenizer))
    config = model_config(spec, vocab_size)  # a base that cannot be trained ends the job before workers are placed
    _train(run, spec, events, prepared, attempt)
    remove_superseded(run, attempt)
    report = build_report(run, spec, prepared, config)
    write_model_card(spec, report, config)
    events.emit("job.finished", report=run.write_report(report))


def _prepare(run: RunDirectory, spec: JobSpec, events: EventWriter) -> PreparedData:
    events.emit("stage.started", stage="prepare")
    start = time.monotonic()
    prepared = prepare(spec, run.prepared_url, _Progress(events))
    events.emit(
        "stage.finished",
        stage="prepare",
        duration_s=time.monotonic() - start,
        reused=prepared.reused,
        summary=prepared.manifest,
    )
    if skipped := sum(source["rows_rejected"] for source in prepared.manifest["sources"]):
        rows, path = prepared.manifest["rejected_rows"], prepared.manifest["rejected_rows_url"]
        events.emit("rows.skipped", stage="prepare", count=skipped, path=path, rows=rows)
    return prepared


def _train(run: RunDirectory, spec: JobSpec, events: EventWriter, prepared: PreparedData, attempt: int) -> None:
    events.emit("stage.started", stage="train")
    events.flush()
    categories = tuple(sorted({source.category for source in spec.data.sources}))
    config = WorkerConfig(
        run_url=run.url,
        attempt=attempt,
        packed_url=prepared.url,
        tokenizer_url=prepared.tokenizer_url,
        categories=categories,
    )

    def tell(message: str) -> None:
        events.emit("job.warning", stage="train", message=message, kind="workers_restarted")
        events.flush()

    train(run, spec, config, tell)


class _Progress:
    """Turns the data stage's progress into events, a few a second at most."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._last = self._start = 0.0
        self._task: str | None = None
        self._first_done = 0

    def __call__(self, task: str, done: int, total: int | None, unit: str) -> None:
        now = time.monotonic()
        if task != self._task:
            self._task, self._start, self._first_done = task, now, done
        if done != total and now - self._last < _PROGRESS_INTERVAL_S:
            return
        self._last = now
        eta_s = self._eta_s(done, total, now)
        self._events.emit("stage.progress", stage="prepare", task=task, done=done, total=total, unit=unit, eta_s=eta_s)

    def _eta_s(self, done: int, total: int | None, now: float) -> float | None:
        """Seconds to the task's end, at its pace so far: what an earlier start had done counts for nothing."""
        if total is None or done <= self._first_done:
            return 0.0 if done == total else None
        return (now - self._start) / (done - self._first_done) * (total - done)


def _report_failure(events: EventWriter, error: Exception) -> None:
    known = error if isinstance(error, SleddogError) else None
    events.emit(
        "job.failed",
        message=str(error),
        code=known.code if known else "internal_error",
        fault=known.fault if known else "infrastructure",
        field=known.field if known else None,
    )


if __name__ == "__main__":
    sys.exit(main())
