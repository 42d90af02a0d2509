"""The spec of a sweep: which data mixes are tried, on which models, and what decides between them.

A sweep goes through stages, each on a larger model than the one before. The first spreads candidates over the mixes
that `axes` allows and narrows them down in rounds; the best go on to the next stage as beams. A candidate is a mix and
the values of the other axes; a trial is one training run of a candidate with one seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from service.spec.axes import Axes, ShareRange, is_within
from service.spec.base import SpecModel, conflict, field_errors
from service.spec.job import JobSpec

HELD_OUT_LOSS = "held_out_loss"
"""Mean over the categories; `held_out_loss.<category>` is one of them."""


DEFAULT_CANDIDATES = 8
"""Of a round: with three categories the base mix, three corners and four mixes between them."""
KEPT_AT_MOST = 2
"""Times `beam_width`: beams that a round leaves where the noise hides their order."""
_SET_BY_THE_SWEEP = (
    "seed",
    "data.seed",
    "data.mixture",
    "data.expected_hash",
    "train.max_steps",
    "train.epochs",
    "evaluate.prompts",
    "evaluate.tasks",
    "evaluate.every_steps",
    "track",
)
"""What a trial has from its stage, its candidate, its seed or the objective: other values would be overwritten."""
_LOSSES_ARE_MEASURED_BY = ("data.held_out_fraction", "model.tokenizer")
"""What decides which tokens a held-out loss is the mean of."""
_MOST_COMBINATIONS = 256
"""Of axes' values that are tried on the job when a sweep is posted; of more, each value by itself."""


class StageSpec(SpecModel):
    """Trials on one model, all with the same budget: `max_steps` or `max_tokens`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    """A label, unique in the sweep."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of each trial; data that is used up before is read again."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of each trial instead, as places in packed rows, in whole steps: the fairer budget where candidates differ
    in the rows of a step or in their length."""
    changes: dict[str, JsonValue] = Field(default={})
    """What is different from the base job: values by dotted path, such as `model.base` or `train.tuning`."""
    candidates: int | None = Field(default=None, ge=1)
    """Candidates of a round. Those of the first stage's first round cover the mixes that `axes` allows, the base mix
    and the corners among them; those of later rounds lie around the beams. By default 8. A later stage's first round
    tries the beams that come to it and the base mix: by default all, else the best, as many as given here."""
    rounds: int = Field(default=1, ge=1)
    """Rounds at most. A stage ends earlier when two rounds have brought no gain beyond the noise."""
    beam_width: int = Field(default=3, ge=1)
    """Beams that a round leaves. What is not worse than the last of them beyond the noise stays too, up to twice as
    many."""
    seeds: int = Field(default=1, ge=1)
    """Trials of each candidate; the seed decides the order of the rows, and the weights of a model that starts from
    random ones."""
    baseline_seeds: int = Field(default=3, ge=2)
    """Trials of the base mix, from which the noise is estimated, together with the candidates' own."""

    @model_validator(mode="after")
    def _one_budget(self) -> StageSpec:
        if (self.max_steps is None) == (self.max_tokens is None):
            raise conflict("max_steps", "give either `max_steps` or `max_tokens`")
        return self

    def num_steps(self, job: JobSpec) -> int:
        """Optimiser steps of a trial.

        Args:
            job: what the stage and the candidate make of the base job.
        """
        if self.max_steps is not None:
            return self.max_steps
        assert self.max_tokens is not None, "a stage has one of both"
        return math.ceil(self.max_tokens / (job.train.global_batch_rows * job.data.sequence_length))

    def num_trials(self, *, is_base: bool) -> int:
        """Of one candidate, or of the base mix, which has as many at least."""
        return max(self.seeds, self.baseline_seeds) if is_base else self.seeds


class MetricSpec(SpecModel):
    """A part of the objective."""

    name: str
    """`held_out_loss.<category>`; `held_out_loss`, the mean over categories; or `<task>.<metric>` of a benchmark in the
    base job's `evaluate.tasks`, such as `gsm8k.exact_match`."""
    weight: float = Field(default=1.0, gt=0)
    """Relative to the other metrics'."""
    direction: Literal["min", "max"] | None = None
    """By default losses are to fall and scores to rise."""

    @property
    def is_minimised(self) -> bool:
        """Whether less is better."""
        if self.direction is not None:
            return self.direction == "min"
        return is_loss(self.name)


def is_loss(metric: str) -> bool:
    """Whether a metric is a held-out loss, and no benchmark's score."""
    return metric.split(".", maxsplit=1)[0] == HELD_OUT_LOSS


class ConstraintSpec(SpecModel):
    """What must not become worse than with the base mix."""

    metric: str
    """As in the objective."""
    max_worsening: float = Field(default=0.01, ge=0)
    """Of a loss as a share of the base mix's; of a score as a difference."""


class ObjectiveSpec(SpecModel):
    """What is best: the weighted mean of the metrics' gains over the base mix, in the same stage.

    The gain of a loss is the share by which it fell, that of a score the difference.
    """

    metrics: tuple[MetricSpec, ...] = (MetricSpec(name=HELD_OUT_LOSS),)
    constraints: tuple[ConstraintSpec, ...] = ()
    """A candidate that breaks one, beyond the noise, comes behind all that do not."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All that a trial must measure, of the metrics and of the constraints, each once."""
        names = [metric.name for metric in self.metrics] + [constraint.metric for constraint in self.constraints]
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _distinct(self) -> ObjectiveSpec:
        if not self.metrics:
            raise conflict("metrics", "give at least one")
        names = [metric.name for metric in self.metrics]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise conflict(f"metrics.{number}.name", f"{name!r} is there twice: give it one weight")
        return self


class EarlyStopSpec(SpecModel):
    """Trials that lag behind end early. They are compared at the same number of tokens."""

    reduction: float = Field(default=3.0, gt=1)
    """Of the trials that reached a rung, one in so many goes on."""
    first_rung: float = Field(default=1 / 3, gt=0, lt=1)
    """Share of the steps at the first rung; each further one is `reduction` times as late."""


class SurrogateSpec(SpecModel):
    """A model of the objective over the mixes, which proposes a part of each later round's candidates."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Of the candidates; the others lie around the beams."""


class SweepSpec(SpecModel):
    """All that a user asks of one sweep."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    """A label for people; need not be unique."""
    base: JobSpec
    """The job whose mix is sought. Its own mix, or that of all its data, is the baseline."""
    axes: Axes = Axes()
    stages: tuple[StageSpec, ...]
    objective: ObjectiveSpec = ObjectiveSpec()
    searcher: Literal["beam", "random", "grid", "optuna", "leave_one_out"] = "beam"
    """How the first stage's candidates are chosen; the others are for comparison. `leave_one_out` tries the base mix
    without each source in turn, in one stage, and tells what each source contributes; where `max_trials` is too few
    for all, those that stand first in the spec."""
    early_stop: EarlyStopSpec | None = None
    """Null lets every trial finish."""
    surrogate: SurrogateSpec | None = None
    """Null proposes none."""
    max_trials: int | None = Field(default=None, ge=1)
    """Trials in all. A round that would leave too few for the first rounds of later stages is not begun."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at a time; by default as many as the cluster has room for."""
    max_trial_failures: int = Field(default=3, ge=0)
    """Trials that may fail before the sweep does; a failed one counts as worst."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides which candidates are tried, and with which seeds."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Of the sources, sorted."""
        return tuple(sorted({source.category for source in self.base.data.sources}))

    def least_trials(self, number: int) -> int:
        """Trials of a stage's first round, without beams that are kept only because the noise hides their order."""
        stage = self.stages[number]
        if self.searcher == "leave_one_out":
            others = 1
        elif number == 0:
            others = (stage.candidates or DEFAULT_CANDIDATES) - 1
        else:
            width = self.stages[number - 1].beam_width
            others = width if stage.candidates is None else min(width, stage.candidates - 1)
        return stage.num_trials(is_base=True) + others * stage.seeds

    def most_trials(self, number: int) -> int:
        """Trials that a stage may come to, if the noise hides the order of as many beams as may be kept."""
        stage = self.stages[number]
        if self.searcher == "leave_one_out":
            first = len(self.base.data.sources) - len(self.base.data.leave_out)
        elif number == 0:
            first = (stage.candidates or DEFAULT_CANDIDATES) - 1
        else:
            beams = KEPT_AT_MOST * self.stages[number - 1].beam_width
            first = beams if stage.candidates is None else min(beams, stage.candidates - 1)
        later = (stage.rounds - 1) * (stage.candidates or DEFAULT_CANDIDATES)
        most = stage.num_trials(is_base=True) + (first + later) * stage.seeds
        return most if self.max_trials is None else min(most, self.max_trials)

    def stage(self, name: str) -> StageSpec:
        """The stage of a name that the sweep has."""
        return next(stage for stage in self.stages if stage.name == name)

    def bounds(self) -> dict[str, ShareRange]:
        """Of every category."""
        return self.axes.mixture or {category: ShareRange() for category in self.categories}

    @model_validator(mode="after")
    def _consistent(self) -> SweepSpec:
        self._check_stages()
        self._check_left_out()
        self._check_budget()
        self._check_mixture()
        self._check_metrics()
        for number, stage in enumerate(self.stages):
            self._check_changes(f"stages.{number}.changes", stage.changes)
        self._check_axes()
        self._check_together()
        return self

    def _check_stages(self) -> None:
        if not self.stages:
            raise conflict("stages", "give at least one")
        names = [stage.name for stage in self.stages]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise conflict(f"stages.{number}.name", f"two stages are named {name!r}")

    def _check_left_out(self) -> None:
        """Without any one of its sources the base mix must still be one, and nothing else is tried."""
        if self.searcher != "leave_one_out":
            return
        if len(self.stages) > 1:
            raise conflict("stages.1", "leaving one source out needs one stage")
        if self.stages[0].rounds > 1:
            raise conflict("stages.0.rounds", "leaving one source out needs one round")
        if self.stages[0].candidates is not None:
            raise conflict("stages.0.candidates", "every source is left out in turn: `max_trials` bounds them")
        if self.axes != Axes():
            raise conflict("axes", "leaving one source out tries no other mix, and no other values")
        data = self.base.data
        sources = [source for source in data.sources if source.name not in data.leave_out]
        for source in sources:
            others = {other.category for other in sources if other is not source}
            if not any(data.mixture is None or data.mixture[category].share for category in others):
                raise conflict("searcher", f"without source {source.name!r} nothing of the base mix would be left")

    def _check_budget(self) -> None:
        least = sum(self.least_trials(number) for number in range(len(self.stages)))
        if self.max_trials is not None and self.max_trials < least:
            raise conflict("max_trials", f"the first rounds of the stages alone are {least} trials")

    def _check_mixture(self) -> None:
        bounds = self.bounds()
        if unknown := sorted(set(bounds) - set(self.categories)):
            raise conflict(f"axes.mixture.{unknown[0]}", "no source has this category")
        if missing := sorted(set(self.categories) - set(bounds)):
            raise conflict(f"axes.mixture.{missing[0]}", "missing: give every category of the sources its bounds")
        if sum(bound.min for bound in bounds.values()) > 1 + 1e-9:
            raise conflict("axes.mixture", "no mix is allowed: the least shares sum to more than 1")
        if sum(bound.max for bound in bounds.values()) < 1 - 1e-9:
            raise conflict("axes.mixture", "no mix is allowed: the greatest shares sum to less than 1")
        if self.base.data.held_out_fraction == 0:
            raise conflict("base.data.held_out_fraction", "is 0: there would be nothing to compare trials by")
        if self.base.data.expected_hash is not None:
            raise conflict("base.data.expected_hash", "must be null: each mix is other data")

    def _check_metrics(self) -> None:
        named = [(f"objective.metrics.{n}.name", metric.name) for n, metric in enumerate(self.objective.metrics)]
        named += [(f"objective.constraints.{n}.metric", c.metric) for n, c in enumerate(self.objective.constraints)]
        for field, name in named:
            self._check_metric(field, name)

    def _check_metric(self, field: str, name: str) -> None:
        task, _, metric = name.partition(".")
        if task == HELD_OUT_LOSS:
            if metric and metric not in self.categories:
                raise conflict(field, f"no source has the category {metric!r}; known: {', '.join(self.categories)}")
            return
        tasks = {task.label: task for task in self.base.evaluate.tasks}
        if task not in tasks or not metric:
            known = [HELD_OUT_LOSS, *(f"{HELD_OUT_LOSS}.{category}" for category in self.categories)]
            known += [f"{label}.{found}" for label, spec in tasks.items() for found in spec.metric_names or ("…",)]
            raise conflict(field, f"unknown metric {name!r}; known: {', '.join(known)}")
        names = tasks[task].metric_names
        if names is not None and metric not in names:
            raise conflict(field, f"task {task!r} measures {', '.join(names)}, not {metric!r}")

    def _taken(self) -> tuple[str, ...]:
        return (*_SET_BY_THE_SWEEP, "data.leave_out") if self.searcher == "leave_one_out" else _SET_BY_THE_SWEEP

    def _check_changes(self, field: str, changes: Mapping[str, JsonValue]) -> None:
        for path in changes:
            for taken in self._taken():
                if is_within(path, taken):
                    raise conflict(field, f"{path!r} is for the sweep itself to set")
                if is_within(taken, path):
                    raise conflict(field, f"{path!r} holds {taken!r}, which is for the sweep itself to set")
        self._require_job(field, changes)

    def _require_job(self, field: str, changes: Mapping[str, JsonValue], of_stage: str = "") -> None:
        try:
            changed(self.base, changes)
        except ValidationError as error:
            fault = field_errors(error.errors(), self.base.model_dump(mode="json"))[0]
            raise conflict(field, f"{of_stage}{fault.field}: {fault.message}") from None
        except KeyError as error:
            raise conflict(field, f"a job has no field {error.args[0]!r}") from None

    def _check_axes(self) -> None:
        """Each value must be one of the base job's, which it is promoted to."""
        losses = [name for name in self.objective.metric_names if is_loss(name)]
        for number, axis in enumerate(self.axes.fields):
            for measured_by in _LOSSES_ARE_MEASURED_BY if losses else ():
                if is_within(axis.path, measured_by) or is_within(measured_by, axis.path):
                    raise conflict(
                        f"axes.fields.{number}.path",
                        f"decides what {losses[0]} is measured on, so candidates could not be compared",
                    )
            for other, stage in enumerate(self.stages):
                for path in stage.changes:
                    if is_within(path, axis.path):
                        raise conflict(f"stages.{other}.changes.{path}", "is an axis, which each candidate sets")
        for field, changes in self.axes.probes():
            self._check_changes(field, changes)

    def _check_together(self) -> None:
        """What a candidate changes must make a job with what its stage changes."""
        for stage in self.stages:
            of_stage = f"in stage {stage.name!r}: "
            for field, changes in self._candidates_changes():
                self._require_job(field, {**stage.changes, **changes}, of_stage)
            if self.searcher != "leave_one_out":
                for category, shares in self._mixes():
                    field = f"axes.mixture.{category}"
                    self._require_job(field, {**stage.changes, "data.mixture": shares}, of_stage)

    def _candidates_changes(self) -> Iterator[tuple[str, dict[str, JsonValue]]]:
        """Values of the further axes, with the path to what they are of: each by itself, and all combinations."""
        yield from self.axes.probes()
        axes = self.axes.fields
        if len(axes) > 1 and math.prod(len(axis.probes) for axis in axes) <= _MOST_COMBINATIONS:
            for values in product(*(axis.probes for axis in axes)):
                yield "axes.fields", {axis.path: value for axis, value in zip(axes, values, strict=True)}

    def _mixes(self) -> Iterator[tuple[str, JsonValue]]:
        """For each category that a candidate may take some of, a mix with it alone."""
        for category, bound in self.bounds().items():
            if bound.max > 0:
                yield category, {other: {"share": float(other == category)} for other in self.categories}


def changed(job: JobSpec, changes: Mapping[str, JsonValue]) -> JobSpec:
    """A job with other values.

    Args:
        job: to begin from.
        changes: values by dotted path; numbers step into lists.

    Raises:
        KeyError: a path leads nowhere; its argument is the path.
        ValidationError: what comes out is no job.
    """
    document = job.model_dump(mode="json")
    for path, value in changes.items():
        _set(document, path, value)
    return JobSpec.model_validate(document)


def _set(document: Any, path: str, value: JsonValue) -> None:
    *parents, last = path.split(".")
    holder = document
    for part in parents:
        holder = _member(holder, part, path)
    if isinstance(holder, dict):
        holder[last] = value
    else:
        _member(holder, last, path)
        holder[int(last)] = value


def _member(holder: Any, part: str, path: str) -> Any:
    if isinstance(holder, list) and part.isdecimal() and int(part) < len(holder):
        return holder[int(part)]
    if isinstance(holder, dict) and part in holder:
        return holder[part]
    raise KeyError(path)


def mixture_of_base(job: JobSpec) -> dict[str, float] | None:
    """The shares of a job's own mix, which sum to 1; None when it takes all there is."""
    if job.data.mixture is None:
        return None
    total = math.fsum(share.share for share in job.data.mixture.values())
    return {category: share.share / total for category, share in sorted(job.data.mixture.items())}
