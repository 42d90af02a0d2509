"""The driver of a fine-tuning job: prepare → train → evaluate → export, each resumable.

An attempt finds what earlier ones finished: prepared data by its content, training by its newest whole checkpoint,
evaluations and export by their committed files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from ray_jobs.data.prepare import PreparedData, prepare
from ray_jobs.driver import PrepareProgress, drive
from ray_jobs.evaluate.run import read_tasks
from ray_jobs.report import build_report
from ray_jobs.run_directory import EventWriter, RunDirectory, local_directory
from ray_jobs.track.trackers import require_packages
from ray_jobs.train.architecture import model_config
from ray_jobs.train.export import remove_superseded
from ray_jobs.train.loop import WorkerConfig
from ray_jobs.train.model_card import write_model_card
from ray_jobs.train.trainer import train
from service.spec.job import JobSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one attempt of a job."""
    return drive("ray_jobs.finetune", lambda run, *rest: run_job(run, run.read_spec(), *rest), arguments)


def run_job(run: RunDirectory, spec: JobSpec, events: EventWriter, attempt: int) -> str:
    """All stages of a job; Ray is connected. Returns the report's URL."""
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
    return run.write_report(report)


def _prepare(run: RunDirectory, spec: JobSpec, events: EventWriter) -> PreparedData:
    events.emit("stage.started", stage="prepare")
    start = time.monotonic()
    prepared = prepare(spec, run.prepared_url, PrepareProgress(events))
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


if __name__ == "__main__":
    sys.exit(main())
