"""One trial of a sweep: a mix is packed, a proxy trained on it, and the held-out loss measured.

A trial has a run directory of its own below the sweep's, in which it leaves what any training leaves, and which it
resumes from. `trial.json` is written last: a trial that has it has ended, and never runs again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.core import url_to_fs
from pydantic import ValidationError

from ray_jobs.data.prepare import prepare
from ray_jobs.evaluate.run import read_summaries
from ray_jobs.fence import Fence, claim_attempt
from ray_jobs.report import read_events
from ray_jobs.run_directory import CHECKPOINTS_DIRECTORY, EventWriter, RunDirectory
from ray_jobs.train.failures import can_restart
from ray_jobs.train.loop import HELD_OUT_FILE, WorkerConfig
from ray_jobs.train.trainer import RAY_TRAIN_DIRECTORY, train
from ray_jobs.tune.beam import PlannedTrial
from ray_jobs.tune.objective import rung_score
from ray_jobs.tune.rungs import rung_steps
from service.errors import InvalidSpecError, SleddogError
from service.spec.base import field_errors
from service.spec.event import SPEC_FILE, Event
from service.spec.job import JobSpec
from service.spec.promotion import changes_of
from service.spec.sweep import HELD_OUT_LOSS, SweepSpec, changed, is_loss
from service.spec.sweep_results import Trial, TrialStatus

TRIAL_FILE = "trial.json"
_CURVE_POINTS = 200


def trial_spec(spec: SweepSpec, planned: PlannedTrial) -> JobSpec:
    """The job that a trial is, but for its epochs, which its steps decide.

    Args:
        spec: the sweep's.
        planned: the trial.

    Raises:
        InvalidSpecError: the candidate's values and its stage's make no job together.
    """
    base, stage = spec.base, spec.stage(planned.stage)
    measured = {name.split(".")[0] for name in spec.objective.metric_names if not is_loss(name)}
    changes: dict[str, Any] = {
        **stage.changes,
        **changes_of(base, planned.mixture, planned.fields, planned.left_out),
        "seed": planned.seed,
        "data.seed": base.seed if base.data.seed is None else base.data.seed,
        "evaluate.prompts": [],
        "evaluate.tasks": [task.model_dump(mode="json") for task in base.evaluate.tasks if task.label in measured],
        "evaluate.every_steps": None,
        # trackers know a run by its job's id, which a trial has none of; the sweep's results hold its curve
        "track": {"tensorboard": False},
    }
    try:
        job = changed(base, changes)
        return changed(job, {"train.max_steps": stage.num_steps(job)})
    except ValidationError as error:
        fault = field_errors(error.errors(), base.model_dump(mode="json"))[0]
        raise InvalidSpecError(f"candidate {planned.candidate} makes no job: {fault.message}", fault.field) from None


@dataclass(frozen=True)
class TrialRun:
    """A trial that runs, or has run.

    Attributes:
        sweep: the sweep's run directory.
        spec: the sweep's.
        planned: the trial.
    """

    sweep: RunDirectory
    spec: SweepSpec
    planned: PlannedTrial

    @property
    def directory(self) -> RunDirectory:
        """The trial's own."""
        return RunDirectory(self.sweep.join("trials", self.planned.id))

    def run_to_its_end(self) -> None:
        """Do what is left of it, and write down how it ended; Ray is connected.

        Raises:
            SleddogError: the infrastructure's fault, which says nothing of the mix: it is to be started again.
        """
        try:
            self.run()
        except SleddogError as error:
            if can_restart(error):
                raise
            self.end("failed", str(error))
        else:
            self.finish()

    def run(self) -> None:
        """Do what is left of it; Ray is connected.

        Raises:
            SleddogError: it cannot be done.
        """
        spec, run = trial_spec(self.spec, self.planned), self.directory
        attempt = 1 + max((event.attempt for event in read_events(run)), default=0)
        while not claim_attempt(run, attempt):  # one before it may have said nothing yet, and live on
            attempt += 1
        with EventWriter(run, "driver", attempt, fence=Fence(run, attempt)) as events:
            events.emit("job.started")
            events.flush()
            prepared = prepare(spec, self.sweep.prepared_url, _quiet)
            rows = prepared.manifest["packing"]["rows"]
            assert spec.train.max_steps is not None, "every stage has a number of steps"
            epochs = math.ceil(spec.train.max_steps * spec.train.global_batch_rows / rows)
            spec = changed(spec, {"train.epochs": epochs})
            run.write_json(SPEC_FILE, spec.model_dump(mode="json"))
            config = WorkerConfig(
                run_url=run.url,
                attempt=attempt,
                packed_url=prepared.url,
                tokenizer_url=prepared.tokenizer_url,
                categories=self.spec.categories,
                is_trial=True,
                rungs=self.rungs,
            )

            def tell(message: str) -> None:
                events.emit("job.warning", stage="train", message=message, kind="workers_restarted")

            train(run, spec, config, tell)
            events.emit("job.finished")

    @property
    def rungs(self) -> tuple[int, ...]:
        """Optimiser steps at which it is compared with others, before its last."""
        stop = self.spec.early_stop
        if stop is None:
            return ()
        max_steps = trial_spec(self.spec, self.planned).train.max_steps
        assert max_steps is not None, "every trial has a number of steps"
        return tuple(rung_steps(stop, max_steps))

    def rungs_reached(self) -> dict[int, dict[str, float]]:
        """All metrics at the rungs so far, by step; a rung where one could not be measured is left out."""
        found = {step: self._measured(f"step-{step}") for step in self.rungs}
        return {step: metrics for step, metrics in found.items() if not self._missing(metrics)}

    def rung_scores(self) -> dict[int, float]:
        """What it is compared by at the rungs so far, by step."""
        return {step: rung_score(self.spec.objective, metrics) for step, metrics in self.rungs_reached().items()}

    def finish(self) -> Trial:
        """Write down that it has run to its last step: it failed if it could not measure all that the objective names.

        A benchmark that fails ends no job, but without its score a trial cannot be compared.
        """
        missing = self._missing(self._measured("after"))
        if not missing:
            return self.end("succeeded")
        summaries = read_summaries(self.directory, self.spec.base.evaluate, ("after",))
        reasons = [f"; {summary['task']}: {summary['reason']}" for summary in summaries if summary["reason"]]
        return self.end("failed", f"{', '.join(missing)} could not be measured{''.join(reasons)}")

    def _missing(self, metrics: Mapping[str, float]) -> list[str]:
        """What the objective names and is not there."""
        return [name for name in self.spec.objective.metric_names if name not in metrics]

    def end(self, status: TrialStatus, reason: str = "") -> Trial:
        """Write down that it has ended, and what came of it; what only a resumption would need is removed.

        One that is stopped ends at the rung where it was, though its workers may take a few steps more meanwhile. Of
        two that say how it ended, its own process and the sweep's, the first is right: later rounds follow from it.
        """
        if (trial := self.ended()) is None:
            trial = self._describe(status, reason)
            planned = {"planned": self.planned._asdict()}
            self.directory.write_json(TRIAL_FILE, trial.model_dump(mode="json") | planned)
        self.remove_leftovers()
        return trial

    def remove_leftovers(self) -> None:
        """Remove what only a resumption would need."""
        for name in (CHECKPOINTS_DIRECTORY, RAY_TRAIN_DIRECTORY):
            filesystem, path = url_to_fs(self.directory.join(name))
            if filesystem.exists(path):
                filesystem.rm(path, recursive=True)

    def ended(self) -> Trial | None:
        """What came of it; None while it has not ended.

        Raises:
            ValueError: what ran by this id was another mix, or had other values.
        """
        document = self.directory.read_json(TRIAL_FILE)
        if document is None:
            return None
        planned = self.planned._asdict()
        if document.get("planned", planned) != planned:
            raise ValueError(
                f"trial {self.planned.id} has run as {document['planned']}: another version began this sweep"
            )
        return Trial.model_validate(document)

    def _describe(self, status: TrialStatus, reason: str) -> Trial:
        events = read_events(self.directory)
        steps = {int(e.data["step"]): e.data for e in events if e.type == "train.step"}  # type: ignore[arg-type]
        reached = self.rungs_reached() if events else {}
        if status == "stopped":
            steps = {step: data for step, data in steps.items() if step <= max(reached, default=0)}
        starts = [event for event in events if event.type == "train.started"]
        workers = len(starts[-1].data["workers"]) if starts else 0  # type: ignore[arg-type]
        duration_s = _duration_s(events)
        measured = self._measured("after") or reached.get(max(reached, default=0), {})
        return Trial(
            id=self.planned.id,
            candidate=self.planned.candidate,
            stage=self.planned.stage,
            seed=self.planned.seed,
            status=status,
            steps=max(steps, default=0),
            tokens=sum(data["tokens"] for data in steps.values()),  # type: ignore[misc]
            duration_s=duration_s,
            worker_seconds=duration_s * workers,
            metrics=measured,
            curve=_thinned([(step, float(data["loss"])) for step, data in sorted(steps.items()) if data["loss"]]),  # type: ignore[arg-type]
            run_url=self.directory.url,
            rungs={step: rung_score(self.spec.objective, metrics) for step, metrics in reached.items()},
            reason=reason,
        )

    def _measured(self, when: str) -> dict[str, float]:
        """All metrics of an evaluation; none while it has not ended."""
        held_out = self.directory.read_json(HELD_OUT_FILE.format(when=when))
        if held_out is None:
            return {}
        metrics = _losses(held_out["loss"])
        for summary in read_summaries(self.directory, self.spec.base.evaluate, (when,)):
            metrics |= {f"{summary['task']}.{name}": m["score"] for name, m in summary["metrics"].items()}
        return metrics


def planned_trial(config: Mapping[str, Any]) -> TrialRun:
    """The trial that a process of Tune's was told of, by `run_url` of the sweep and `planned`."""
    sweep = RunDirectory(config["run_url"])
    return TrialRun(sweep, sweep.read_sweep_spec(), PlannedTrial(**config["planned"]))


def _quiet(task: str, done: int, total: int | None, unit: str) -> None:
    """What a trial prepares takes seconds: nobody needs to be told."""


def _losses(by_category: Mapping[str, float]) -> dict[str, float]:
    losses = {f"{HELD_OUT_LOSS}.{category}": loss for category, loss in by_category.items()}
    return losses | ({HELD_OUT_LOSS: sum(losses.values()) / len(losses)} if losses else {})


def _duration_s(events: list[Event]) -> float:
    """From the first event of each attempt to its last."""
    times: dict[int, list[float]] = {}
    for event in events:
        times.setdefault(event.attempt, []).append(event.time.timestamp())
    return sum(max(of_attempt) - min(of_attempt) for of_attempt in times.values())


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many of its points, the last one among them."""
    stride = math.ceil(len(curve) / _CURVE_POINTS) or 1
    return curve[(len(curve) - 1) % stride :: stride]
