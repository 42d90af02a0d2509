"""What a sweep has found so far: its trials, its candidates, and what they say of each other.

`ray_jobs.ablate` writes it, whole, whenever it changes (`SWEEP_FILE` in the run directory); the REST API, the client
and the report read it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, JsonValue

from service.spec.resources import Resource

if TYPE_CHECKING:
    import pandas

SWEEP_FILE = "sweep.json"
REPORT_PAGE_FILE = "report.html"
"""The report for people, left in the run directory when the sweep ends."""

TrialStatus = Literal["pending", "running", "succeeded", "stopped", "failed", "unfinished"]
EndedBy = Literal["rounds", "no_gain", "max_trials", "single_round", "exhausted", "baseline_failed"]
"""Why a stage ended: its rounds were used up; two brought no gain beyond the noise, or one while the surrogate expects
none; another would exceed `max_trials`; it has but one; nothing was left to try; no trial of the base mix finished, so
nothing could be compared."""
CandidateRole = Literal["base", "corner", "spread", "neighbour", "surrogate", "promoted", "without_source"]


class Estimate(Resource):
    """A mean over seeds, and how far it is to be trusted."""

    value: float
    noise: float | None = None
    """Standard error, from the noise between seeds; null while no two seeds were compared."""

    def exceeds(self, num_errors: float | None) -> bool:
        """Whether it differs from 0 by more than so many standard errors; never where none is known."""
        if num_errors is None or self.noise is None:
            return False
        return abs(self.value) > num_errors * self.noise > 0


class Trial(Resource):
    """One training run of a candidate with one seed."""

    id: str
    """Unique in the sweep, and the name of its directory below `trials/`."""
    candidate: str
    stage: str
    seed: int
    status: TrialStatus
    """`stopped` lagged behind at a rung, and ended there; `unfinished` was planned or running when the sweep ended."""
    steps: int = 0
    """Optimiser steps taken."""
    tokens: int = 0
    """Real tokens trained on."""
    duration_s: float = 0.0
    """Of the training itself, start of the workers included; over all attempts."""
    worker_seconds: float = 0.0
    """Times the workers that it held: the cost."""
    metrics: dict[str, float] = Field(default={})
    """By the names of `MetricSpec`, at the last step taken."""
    curve: list[tuple[int, float]] = Field(default=[])
    """Loss by step, a few hundred points at most."""
    rungs: dict[int, float] = Field(default={})
    """Score at each rung by its step."""
    run_url: str = ""
    reason: str = ""
    """Why it failed."""


class Candidate(Resource):
    """A mix, and values of the other axes, in one stage. Those that go on are the beams."""

    id: str
    stage: str
    round: int
    """From 0."""
    role: CandidateRole
    """How it came to be tried."""
    predicted: Estimate | None = None
    """The score that the surrogate foretold before any of its trials, with the standard deviation; null without one."""
    parent: str | None = None
    """The beam it was made from: of the same stage, or of the one before for what was promoted."""
    mixture: dict[str, float] | None = None
    """Share by category; they sum to 1. Null is all there is, where no source is asked for less."""
    fields: dict[str, JsonValue] = Field(default={})
    """Values of the further axes, by dotted path."""
    left_out: str | None = None
    """The source that it does without."""
    trials: list[str] = Field(default=[])
    metrics: dict[str, Estimate] = Field(default={})
    gains: dict[str, Estimate] = Field(default={})
    """Over the base mix in the same stage, by metric: of a loss the share by which it fell, of a score the difference;
    above 0 is better."""
    score: Estimate | None = None
    """The objective; null while no trial has ended."""
    broken: list[str] = Field(default=[])
    """Metrics whose constraint it breaks."""
    rank: int | None = None
    """1 is best in the stage; what breaks a constraint comes behind all others."""
    is_beam: bool = False
    """Whether it is among the best of the stage's last round so far."""
    is_promoted: bool = False
    """Whether it went on to the next stage."""
    worker_seconds: float = 0.0


class Agreement(Resource):
    """Whether two groups of trials rank the same candidates alike."""

    first: str
    second: str
    num_candidates: int
    spearman: float | None
    """Rank correlation; null for fewer than 3 candidates, or where a stage scored all of them alike."""
    chance: float | None = None
    """How often ranks without any relation would agree so well or better; null where `spearman` is."""
    same_best: bool


class StageResult(Resource):
    """What one stage came to."""

    name: str
    status: Literal["pending", "running", "finished", "unfinished"]
    """`unfinished` was still to come, or running, when the sweep ended."""
    num_trials: int = 0
    noise: float | None = None
    """Standard deviation of one trial's score between seeds."""
    noise_degrees: int = 0
    """Degrees of freedom that it is known with: trials of two or more seeds, less one for each candidate."""
    clear_errors: float | None = None
    """Standard errors beyond which a gain is called clear: 2, and more where few seeds tell the noise (Student's t at
    97.7 %); null while the noise is not known."""
    ended_by: EndedBy | None = None
    best_score_by_round: list[float] = Field(default=[])
    """Of all candidates so far."""
    surrogate_error: float | None = None
    """Root mean square of the surrogate's error on trials it had not seen, in units of the score; null without one."""


Part = TypeVar("Part", Trial, StageResult)


class SweepResults(Resource):
    """All of it."""

    stages: list[StageResult]
    candidates: list[Candidate]
    trials: list[Trial]
    agreements: list[Agreement] = Field(default=[])
    best: str | None = None
    """The best candidate of the last stage that has one."""
    contributions: dict[str, Estimate] = Field(default={})
    """By source, of the searcher `leave_one_out`: by how much the score falls without it."""
    verdict: list[str] = Field(default=[])
    """What was found, in sentences."""
    worker_seconds: float = 0.0
    prepare_seconds: float = 0.0
    """What the data took, once."""

    def as_ended(self) -> SweepResults:
        """The same of a sweep that has ended: one that was cancelled or lost had no time to say what it left undone."""
        stages, trials = [_as_ended(stage) for stage in self.stages], [_as_ended(trial) for trial in self.trials]
        return self.model_copy(update={"stages": stages, "trials": trials})

    def to_pandas(self) -> pandas.DataFrame:
        """The trials as a table: a row each, with its candidate's mix and other values.

        Columns are `trial`, `candidate`, `stage`, `round`, `role`, `seed`, `status`, `steps`, `tokens`, `duration_s`,
        `worker_seconds`, `score` (the candidate's), then `share.<category>`, the further axes and the metrics.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("a DataFrame needs pandas: `pip install pandas`") from error
        candidates = {candidate.id: candidate for candidate in self.candidates}
        return pandas.DataFrame([_row(trial, candidates[trial.candidate]) for trial in self.trials])


def _as_ended(part: Part) -> Part:
    return part.model_copy(update={"status": "unfinished"}) if part.status in ("pending", "running") else part


def leaderboard(results: SweepResults, stage: str | None = None, *, only_beams: bool = False) -> list[Candidate]:
    """Candidates by stage, of each stage the best first; those without a rank come last.

    Args:
        results: of the sweep.
        stage: only this one's.
        only_beams: leave out what is neither a beam nor was promoted.
    """
    order = [found.name for found in results.stages]
    shown = [
        candidate
        for candidate in results.candidates
        if stage in (None, candidate.stage) and (not only_beams or candidate.is_beam or candidate.is_promoted)
    ]
    return sorted(shown, key=lambda candidate: (order.index(candidate.stage), candidate.rank or math.inf))


def _row(trial: Trial, candidate: Candidate) -> dict[str, Any]:
    return {
        "trial": trial.id,
        "candidate": candidate.id,
        "stage": trial.stage,
        "round": candidate.round,
        "role": candidate.role,
        "seed": trial.seed,
        "status": trial.status,
        "steps": trial.steps,
        "tokens": trial.tokens,
        "duration_s": trial.duration_s,
        "worker_seconds": trial.worker_seconds,
        "score": candidate.score.value if candidate.score else None,
        **{f"share.{category}": share for category, share in (candidate.mixture or {}).items()},
        **candidate.fields,
        **trial.metrics,
    }
