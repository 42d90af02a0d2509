"""The freeze advisor: what full, frozen-MoE and router-only tuning give and cost on the same data, and what follows.

`advise_freeze` runs one short job a mode, one after the other so that they do not share the machine, and reads their
reports. The rest is arithmetic on what the reports say, without a service.

Rules. A mode's gain is the fall of the held-out loss, in nats a token. Full tuning must gain at least
`SMALLEST_GAIN_FRACTION` of the loss before training, or nothing is concluded. Of the other modes,

    enough      has at least `ENOUGH` of full tuning's gain, and every two categories in the same order of gain
    direction   has at least `DIRECTION` of it
    too little  is the rest

Two categories count as ordered in a mode when their gains differ by `SMALLEST_DIFFERENCE` nats or more; the order is
kept unless both modes order them, and differently. The cheapest mode that is enough is recommended, by seconds a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from statistics import median
from typing import Any, Literal, get_args

from moe.config import Tuning
from service.client.client import Client
from service.errors import InvalidSpecError
from service.spec.job import JobSpec
from service.spec.resources import Job, Resource, StepMetrics

MODES: tuple[Tuning, ...] = get_args(Tuning)
ENOUGH, DIRECTION = 0.9, 0.5
SMALLEST_GAIN_FRACTION = 0.01
SMALLEST_DIFFERENCE = 0.01
STEPS_NOT_TIMED = 3
"""The first ones, which load kernels and touch memory for the first time."""
ALL = "(all)"
"""Beside the categories' names, none of which has such characters: all held-out tokens together."""
_LONGEST_NAME = 40

Verdict = Literal["reference", "enough", "direction", "too little", "undecided"]


class TuningResult(Resource):
    """What one mode's job measured."""

    tuning: Tuning
    job_id: str
    steps: int
    num_workers: int
    num_trained_params: int
    peak_memory_bytes: int
    """Of the worker with the most."""
    step_s: float
    """Median, the first steps left out."""
    tokens_per_s: float
    """Median, likewise."""
    before: dict[str, float]
    """Held-out loss by category, and over all, nats a token."""
    after: dict[str, float]
    """The same after training."""

    @property
    def gains(self) -> dict[str, float]:
        """Fall of the held-out loss."""
        return {category: self.before[category] - self.after[category] for category in self.before}


class TuningAdvice(Resource):
    """A mode beside full tuning."""

    result: TuningResult
    gain: float
    """Fall of the held-out loss over all, nats a token."""
    share_of_gain: float | None
    """Of full tuning's; null where that has gained too little to tell."""
    shares_by_category: dict[str, float | None]
    """Likewise."""
    reordered: list[tuple[str, str]]
    """Pairs of categories whose order by gain is another one than in full tuning."""
    worker_seconds_per_nat: float | None
    """Seconds of all workers' steps for each nat gained; null without a gain."""
    verdict: Verdict
    reason: str


class FreezeAdvice(Resource):
    """The comparison."""

    modes: list[TuningAdvice]
    """Full tuning first."""
    recommended: Tuning
    """For ablations over data mixes; full tuning unless another mode is enough and faster."""
    reason: str


def comparison_specs(spec: JobSpec, steps: int, modes: Sequence[str] = MODES) -> list[JobSpec]:
    """The jobs of a comparison: the same but for what they train; their data has the same hash, so is prepared once.

    Args:
        spec: of the job to be compared. Its evaluation tasks and prompts are left out.
        steps: optimiser steps of each.
        modes: others beside full tuning, which is always among them and comes first.

    Raises:
        InvalidSpecError: there is no such mode.
    """
    if unknown := sorted(set(modes) - set(MODES)):
        raise InvalidSpecError(f"{unknown[0]!r} is no mode of tuning; there are {', '.join(MODES)}")
    evaluate = spec.evaluate.model_copy(update={"tasks": (), "prompts": (), "every_steps": None})
    jobs = []
    for mode in MODES:
        if mode == "full" or mode in modes:
            suffix = "-" + mode.replace("_", "-")
            train = spec.train.model_copy(update={"tuning": mode, "max_steps": steps})
            name = spec.name[: _LONGEST_NAME - len(suffix)] + suffix
            jobs.append(spec.model_copy(update={"name": name, "train": train, "evaluate": evaluate}))
    return jobs


def advise_freeze(
    client: Client,
    spec: JobSpec,
    *,
    steps: int = 50,
    modes: Sequence[str] = MODES,
    on_update: Callable[[Job], None] | None = None,
) -> FreezeAdvice:
    """Run the comparison to its end.

    The same call again finds the jobs that have succeeded or are under way, and runs anew those that failed or were
    cancelled. The job under way is cancelled if the call is interrupted.

    Args:
        client: of a running service.
        spec: of the job to be compared.
        steps: optimiser steps of each mode.
        modes: see `comparison_specs`.
        on_update: told of every look at a job.

    Raises:
        InvalidSpecError: too few steps to be timed, an unknown mode, or no held-out data.
        JobFailedError: a mode's job failed or was cancelled.
    """
    if steps <= STEPS_NOT_TIMED:
        raise InvalidSpecError(f"a comparison needs more than {STEPS_NOT_TIMED} steps a mode")
    results = []
    for job_spec in comparison_specs(spec, steps, modes):
        with _cancelled_on_interrupt(client, _find_or_create(client, job_spec)) as job:
            client.jobs.wait(job.id, on_update=on_update)
        report = client.jobs.report(job.id)
        results.append(read_result(job_spec, report, client.jobs.metrics(job.id)))
    return advise(results)


def _find_or_create(client: Client, spec: JobSpec) -> Job:
    """The job of a spec that has succeeded or is under way, else a new one: each failure gives way to another key."""
    attempt = 1
    while True:
        job = client.jobs.create(spec, idempotency_key=f"advise-freeze-{spec.sha256()}-{attempt}")
        if job.status not in ("failed", "cancelling", "cancelled"):
            return job
        attempt += 1


@contextmanager
def _cancelled_on_interrupt(client: Client, job: Job) -> Iterator[Job]:
    try:
        yield job
    except (KeyboardInterrupt, SystemExit):
        client.jobs.cancel(job.id)
        raise


def read_result(spec: JobSpec, report: Mapping[str, Any], metrics: Sequence[StepMetrics]) -> TuningResult:
    """What a job's report and the metrics of its steps say.

    Args:
        spec: the job's.
        report: from `client.jobs.report`.
        metrics: from `client.jobs.metrics`.

    Raises:
        InvalidSpecError: the data is too little to hold any of it out, or for so many steps that some are timed.
    """
    timed = [step.data for step in metrics if step.step > STEPS_NOT_TIMED]
    if not timed:
        raise InvalidSpecError(f"the data gives {len(metrics)} steps only; take more of it", "train.epochs")
    if not report["held_out"]["before"]:
        raise InvalidSpecError("no conversation was held out; take more of them", "data.held_out_fraction")
    return TuningResult(
        tuning=spec.train.tuning,
        job_id=report["job_id"],
        steps=report["train"]["steps"],
        num_workers=spec.parallel.num_workers,
        num_trained_params=report["model"]["num_trained_params"],
        peak_memory_bytes=report["train"]["peak_memory_bytes"],
        step_s=median(float(data["step_s"]) for data in timed),  # type: ignore[arg-type]
        tokens_per_s=median(float(data["tokens_per_s"]) for data in timed),  # type: ignore[arg-type]
        before=_with_all(report["held_out"]["before"], report["data"]),
        after=_with_all(report["held_out"]["after"], report["data"]),
    )


def _with_all(losses: Mapping[str, float], data: Mapping[str, Any]) -> dict[str, float]:
    """Losses by category, and over all held-out tokens that are trained on elsewhere."""
    tokens = {line["category"]: line["trained_tokens"] for line in data["held_out"]}
    total = sum(tokens[category] for category in losses)
    return dict(losses) | {ALL: sum(tokens[category] * loss for category, loss in losses.items()) / total}


def advise(results: Sequence[TuningResult]) -> FreezeAdvice:
    """Apply the rules of the module's docstring.

    Args:
        results: full tuning's first; all of the same steps and data.
    """
    full = results[0]
    modes = [_beside_full(result, full) for result in results]
    enough = [one for one in modes if one.verdict == "enough" and one.result.step_s < full.step_s]
    if enough:
        best = min(enough, key=lambda one: one.result.step_s)
        return FreezeAdvice(modes=modes, recommended=best.result.tuning, reason=best.reason)
    is_undecided = modes[0].verdict == "undecided"
    reason = modes[0].reason if is_undecided else "no other mode is both enough and faster a step"
    return FreezeAdvice(modes=modes, recommended="full", reason=reason)


def _beside_full(result: TuningResult, full: TuningResult) -> TuningAdvice:
    shares = {category: _share(result, full, category) for category in full.before}
    gain, share = result.gains[ALL], shares.pop(ALL)
    reordered = _reordered(result.gains, full.gains)
    verdict, reason = _judge(result, full, share, reordered)
    seconds = result.steps * result.step_s * result.num_workers
    return TuningAdvice(
        result=result,
        gain=gain,
        share_of_gain=share,
        shares_by_category=shares,
        reordered=reordered,
        worker_seconds_per_nat=seconds / gain if gain > 0 else None,
        verdict=verdict,
        reason=reason,
    )


def _share(result: TuningResult, full: TuningResult, category: str) -> float | None:
    """Of full tuning's gain; None where that is too small to be a measure."""
    of_full = full.gains[category]
    if of_full < SMALLEST_GAIN_FRACTION * full.before[category]:
        return None
    return result.gains[category] / of_full


def _reordered(gains: Mapping[str, float], of_full: Mapping[str, float]) -> list[tuple[str, str]]:
    """Pairs of categories, the one that gains more in full tuning first."""
    categories = sorted((name for name in of_full if name != ALL), key=lambda name: -of_full[name])
    return [
        (more, less)
        for more, less in combinations(categories, 2)
        if of_full[more] - of_full[less] >= SMALLEST_DIFFERENCE and gains[less] - gains[more] >= SMALLEST_DIFFERENCE
    ]


def _judge(
    result: TuningResult, full: TuningResult, share: float | None, reordered: Sequence[tuple[str, str]]
) -> tuple[Verdict, str]:
    if share is None:
        gained = full.gains[ALL] / full.before[ALL]
        needed = f"less than {SMALLEST_GAIN_FRACTION:.0%}: give it more steps"
        return "undecided", f"full tuning lowers the held-out loss by {gained:.1%} only, {needed}"
    if result.tuning == "full":
        return "reference", "what the others are compared with"
    pairs = ", ".join(f"{more} and {less}" for more, less in reordered)
    order = f"the order by gain of {pairs} turned round" if reordered else "no two categories in another order"
    seconds, memory = result.step_s / full.step_s, result.peak_memory_bytes / full.peak_memory_bytes
    cost = f"at {seconds:.2f} of the time a step and {memory:.2f} of the memory"
    told = f"{share:.0%} of full tuning's gain, {order}, {cost}"
    if share >= ENOUGH and not reordered:
        return "enough", f"enough for ablations: {told}"
    if share >= DIRECTION:
        return "direction", f"tells the direction only: {told}; enough is {ENOUGH:.0%} in the same order"
    return "too little", f"too little to stand for full tuning: {told}; a direction needs {DIRECTION:.0%}"
