"""The driver of a sweep: prepare the data once, run the trials, report.

An attempt finds what earlier ones left: prepared data by its content, trials that have ended by their files, and the
others by their checkpoints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from ray_jobs.data.prepare import prepare
from ray_jobs.driver import PrepareProgress, drive
from ray_jobs.evaluate.run import read_tasks
from ray_jobs.run_directory import EventWriter, RunDirectory, write_file
from ray_jobs.tune.report_page import page
from ray_jobs.tune.search import run_trials
from ray_jobs.tune.sweep import Sweep
from service.errors import EmptyDataError
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec, changed, is_loss
from service.spec.sweep_results import REPORT_PAGE_FILE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one attempt of a sweep."""
    return drive("ray_jobs.ablate", lambda run, *rest: run_sweep(run, run.read_sweep_spec(), *rest), arguments)


def run_sweep(run: RunDirectory, spec: SweepSpec, events: EventWriter, attempt: int) -> str:
    """All of a sweep; Ray is connected. Returns the report's URL."""
    read_tasks(spec.base.evaluate)  # a benchmark that cannot be read ends the sweep before anything is paid for

    mixture, seconds = _prepare(run, spec, events)
    sweep = Sweep(spec, run, mixture, seconds, events.emit)
    run_trials(sweep, run, attempt)
    sweep.require_success()
    sweep.remove_leftovers()
    write_file(run.join(REPORT_PAGE_FILE), page(spec, sweep.results()).encode())
    return run.write_report({"sweep_id": run.job_id, "name": spec.name, **sweep.results().model_dump(mode="json")})


def _prepare(run: RunDirectory, spec: SweepSpec, events: EventWriter) -> tuple[dict[str, float], float]:
    """What the base job's mix is, by category, and the seconds that its data took; trials find it and only mix anew."""
    start = time.monotonic()
    events.emit("stage.started", stage="prepare")
    prepared = prepare(_base(spec), run.prepared_url, PrepareProgress(events))
    seconds = time.monotonic() - start
    events.emit(
        "stage.finished", stage="prepare", duration_s=seconds, reused=prepared.reused, summary=prepared.manifest
    )
    events.flush()
    _require_held_out(spec, prepared.manifest)
    mixture = {line["category"]: line["fraction"] for line in prepared.manifest["mixture"]}
    return {category: mixture.get(category, 0.0) for category in spec.categories}, seconds


def _require_held_out(spec: SweepSpec, manifest: dict[str, Any]) -> None:
    """Check that each loss of the objective has conversations to be measured on.

    Raises:
        EmptyDataError: one has none.
    """
    held_out = {line["category"] for line in manifest["held_out"]}
    for name in spec.objective.metric_names:
        category = name.partition(".")[2]
        if is_loss(name) and (not held_out if not category else category not in held_out):
            what = f"of {category!r} " if category else ""
            raise EmptyDataError(
                f"no conversation {what}is held out, so {name} cannot be measured", "base.data.held_out_fraction"
            )


def _base(spec: SweepSpec) -> JobSpec:
    """The base job, its data as the trials' is: the seed of a trial is none of the data's."""
    job = spec.base
    return changed(job, {"data.seed": job.seed if job.data.seed is None else job.data.seed})


if __name__ == "__main__":
    sys.exit(main())
