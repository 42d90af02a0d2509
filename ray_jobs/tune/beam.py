"""The rule of a sweep: from what has ended, what runs next and what is known.

`advance` is a pure function, and keeps no state of its own: it goes through the sweep from its beginning each time,
with the trials that have ended. A round's candidates depend on all trials of the rounds before and on nothing else, so
it does not matter in which order trials end, and a restarted driver asks again and goes on.

A stage narrows its candidates down in rounds. The best `beam_width` of all so far, and what is not worse beyond the
noise, are the beams; the next round lies around them, closer each time. It ends when its rounds are used up, when two
rounds have brought no gain beyond the noise, or one has not and the surrogate expects none, or when the next would
exceed `max_trials`. The beams go on to the next stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from ray_jobs.tune import propose
from ray_jobs.tune.agreement import agreement
from ray_jobs.tune.objective import Judgement, Noise, judge
from ray_jobs.tune.propose import Beam, Outcome, Proposal
from ray_jobs.tune.space import Point, Space
from ray_jobs.tune.surrogate import Surrogate
from service.spec.sweep import DEFAULT_CANDIDATES, KEPT_AT_MOST, StageSpec, SweepSpec, mixture_of_base
from service.spec.sweep_results import Agreement, Candidate, EndedBy, Estimate, StageResult, SweepResults, Trial

PATIENCE = 2
"""Rounds in which the best must have become better beyond the noise. One round's gain is often less than the noise
though two rounds' is not: ending after one left 2 to 6 % of the possible gain, after two 1 to 3 % (tuning surfaces,
noise of 0.2 %)."""


class PlannedTrial(NamedTuple):
    """A trial to run."""

    id: str
    """Unique in the sweep; small letters, digits and hyphens."""
    candidate: str
    stage: str
    seed: int
    """Of the job. Candidates share their seeds, so what a seed does to all alike does not tell them apart."""
    mixture: dict[str, float] | None
    """Share by category; None is all there is."""
    fields: dict[str, JsonValue]
    """Values by dotted path."""
    left_out: str | None
    """Name of a source."""


class Advance(NamedTuple):
    """How a sweep stands."""

    due: tuple[PlannedTrial, ...]
    """All of the current round that have not ended."""
    results: SweepResults
    """All that is known; without a verdict. Trials that are due are pending in it."""
    is_finished: bool


def advance(spec: SweepSpec, base_mixture: Mapping[str, float], ended: Mapping[str, Trial]) -> Advance:
    """What to run, and what is known.

    Args:
        spec: of the sweep.
        base_mixture: the share of each category in the base job's mix, as it really is.
        ended: trials that succeeded, were stopped or failed, by id.

    Returns:
        The same for the same arguments, whatever the order of `ended`.

    Raises:
        ValueError: a trial in `ended` is none that this sweep would have run, or lacks a metric of the objective.
    """
    space = Space.of(spec, base_mixture)
    stages: list[_Stage] = []
    for number in range(len(spec.stages)):
        stage = _Stage(spec, number, space, ended, stages[-1] if stages else None)
        stages.append(stage)
        stage.replay()
        if stage.is_due or not stage.beams:
            break
    planned = [trial for stage in stages for trial in stage.planned]
    if strangers := sorted(set(ended) - {trial.id for trial in planned}):
        raise ValueError(f"trial {strangers[0]!r} is of another sweep")
    due = tuple(trial for trial in planned if trial.id not in ended)
    return Advance(due, _results(spec, stages, planned, ended), not due)


class _Stage:
    """One stage, replayed from the trials that have ended.

    Attributes:
        planned: trials of all rounds begun.
        is_due: whether some of them have not ended.
        points: of each candidate, by its id.
        judgement: of all candidates begun; None before the first round.
        beams: ids of the best after the last round that has ended, best first.
        moves: rounds around beams, those of the stages before included.
    """

    def __init__(self, spec: SweepSpec, number: int, space: Space, ended: Mapping[str, Trial], before: _Stage | None):
        self.sweep, self.number, self.space, self.ended, self.before = spec, number, space, ended, before
        self.spec: StageSpec = spec.stages[number]
        self.planned: list[PlannedTrial] = []
        self.is_due = False
        self.points: dict[str, Point] = {}
        self.judgement: Judgement | None = None
        self.beams: list[str] = []
        self.moves: int = before.moves if before else 0
        self.num_trials: int = before.num_trials if before else 0
        self.ended_by: EndedBy | None = None
        self.best_score_by_round: list[float] = []
        self._candidates: list[Candidate] = []
        self._best_by_round: list[str] = []
        self._foretells: Surrogate | None = None

    def replay(self) -> None:
        """Go through the rounds, up to the first with a trial that has not ended."""
        for round_number in range(self.spec.rounds):
            proposals = self._proposals(round_number)
            if not proposals:
                self.ended_by = "exhausted"
                return
            if not self._has_room(proposals):
                self.ended_by = "max_trials"
                return
            self._begin(round_number, proposals)
            self.judgement = judge(self.sweep.objective, self._candidates, self.ended)
            if self.is_due:
                return
            if not self.judgement.ranked:
                self.ended_by = "baseline_failed"
                return
            self._close_round()
            if self._narrows and not self._gains():
                self.ended_by = "no_gain"
                return
        self.ended_by = "rounds" if self.spec.rounds > 1 else "single_round"

    @property
    def _narrows(self) -> bool:
        """Whether rounds lie around beams."""
        return self.number > 0 or self.sweep.searcher == "beam"

    @property
    def best(self) -> str | None:
        """The best of the rounds that have ended."""
        return self.beams[0] if self.beams else None

    def _gains(self) -> bool:
        """Whether to go on: the last two rounds brought a gain, and the last one did or more may be expected."""
        if not self._has_gained_in(PATIENCE):
            return False
        return self._has_gained_in(1) or self._may_gain()

    def _has_gained_in(self, rounds: int) -> bool:
        """Whether the best is better, beyond the noise, than the best of so many rounds before; so too at first."""
        assert self.judgement is not None
        if len(self._best_by_round) <= rounds:
            return True
        by_id = {candidate.id: candidate for candidate in self.judgement.candidates}
        return self.judgement.is_better(by_id[self._best_by_round[-1]], by_id[self._best_by_round[-1 - rounds]])

    def _may_gain(self) -> bool:
        """Whether the surrogate, if there is one, expects a gain beyond the noise somewhere.

        To end by that alone was rejected: on one of six surfaces it left 2.1 % of the way, for what one round cannot
        tell from noise several can.
        """
        surrogate = self.surrogate()
        if surrogate is None or self.judgement is None:
            return True
        pool = propose.pool(self.space, self._near_beams(self.moves + 1, 0), propose.seeded(self.sweep.seed))
        expected = surrogate.expected_improvement(np.array([self.space.coordinates(point) for point in pool]))
        return float(expected.max()) > self.judgement.noise.limit(self.spec.seeds, self.spec.seeds)

    def _close_round(self) -> None:
        assert self.judgement is not None
        ranked = self.judgement.ranked
        width = self.spec.beam_width
        kept = list(ranked[:width])
        others = ranked[width : KEPT_AT_MOST * width]
        kept += [one for one in others if not self.judgement.is_better(kept[width - 1], one)]
        self.beams = [candidate.id for candidate in kept]
        self.best_score_by_round.append(_score(ranked[0]))
        self._best_by_round.append(ranked[0].id)

    def _begin(self, round_number: int, proposals: list[Proposal]) -> None:
        for proposal in proposals:
            name = f"{self.spec.name}-r{round_number}-c{len(self._candidates)}"
            is_base = proposal.role == "base"
            is_of_base = is_base or proposal.left_out is not None
            mixture = self._base_mixture(proposal.left_out) if is_of_base else self.space.mixture(proposal.point)
            fields = {} if is_of_base else self.space.field_values(proposal.point)
            trials = [
                PlannedTrial(
                    id=f"{name}-s{count}",
                    candidate=name,
                    stage=self.spec.name,
                    seed=(self.sweep.seed + count) % 2**32,
                    mixture=mixture,
                    fields=fields,
                    left_out=proposal.left_out,
                )
                for count in range(self.spec.num_trials(is_base=is_base))
            ]
            self._candidates.append(
                Candidate(
                    id=name,
                    stage=self.spec.name,
                    round=round_number,
                    role=proposal.role,
                    parent=proposal.parent,
                    mixture=mixture,
                    fields=fields,
                    left_out=proposal.left_out,
                    predicted=self._predicted(proposal.point),
                    trials=[trial.id for trial in trials],
                )
            )
            self.points[name] = proposal.point
            self.planned += trials
            self.num_trials += len(trials)
        self.is_due = any(trial.id not in self.ended for trial in self.planned)

    def _predicted(self, point: Point) -> Estimate | None:
        if self._foretells is None:
            return None
        [value], [deviation] = self._foretells.predict(self.space.coordinates(point)[None])
        return Estimate(value=float(value), noise=float(deviation))

    def _base_mixture(self, left_out: str | None) -> dict[str, float] | None:
        """The base job's own shares; without a source that was the only one of its category, the others' grow alike."""
        shares = mixture_of_base(self.sweep.base)
        data = self.sweep.base.data
        left = {source.category for source in data.sources if source.name not in (*data.leave_out, left_out)}
        if shares is None or left >= {category for category, share in shares.items() if share}:
            return shares
        total = math.fsum(share for category, share in shares.items() if category in left)
        return {category: share / total if category in left else 0.0 for category, share in shares.items()}

    def _has_room(self, proposals: list[Proposal]) -> bool:
        return self._cost(proposals) <= self._room()

    def _cost(self, proposals: Iterable[Proposal]) -> int:
        return sum(self.spec.num_trials(is_base=proposal.role == "base") for proposal in proposals)

    def _room(self) -> float:
        """Trials that may still be begun, if the later stages are to have their first rounds."""
        if self.sweep.max_trials is None:
            return math.inf
        later = sum(self.sweep.least_trials(number) for number in range(self.number + 1, len(self.sweep.stages)))
        return self.sweep.max_trials - self.num_trials - later

    def _proposals(self, round_number: int) -> list[Proposal]:
        taken = [point.key for point in self.points.values()]
        count = self.spec.candidates or DEFAULT_CANDIDATES
        seed = propose.seeded(self.sweep.seed, self.number, round_number)
        if round_number == 0:
            base = Proposal(self.space.base, "base")
            if self.before is not None:
                return [base, *self._promoted()]
            if self.sweep.searcher == "leave_one_out":
                return [base, *self._without_each_source()]
            others = self._first_stage_points(round_number, count - 1, seed)
            return [base, *propose.fresh(others, count - 1, [base.point.key])]
        if not self._narrows:
            return propose.fresh(self._first_stage_points(round_number, count, seed), count, taken)
        self.moves += 1
        return self._around_beams(count, seed, taken)

    def _around_beams(self, count: int, seed: int, taken: list[str]) -> list[Proposal]:
        suggested: list[Proposal] = []
        self._foretells = self.surrogate()
        if self._foretells is not None and self.sweep.surrogate is not None:
            number = max(1, round(self.sweep.surrogate.share * count))
            points = propose.pool(self.space, self._near_beams(self.moves, seed), seed)
            suggested = propose.fresh(propose.by_surrogate(self.space, self._foretells, points, count), number, taken)
        return propose.fresh(chain(suggested, self._near_beams(self.moves, seed)), count, taken)

    def _near_beams(self, move: int, seed: int) -> Iterable[Proposal]:
        beams = [Beam(name, self.points[name]) for name in self.beams]
        radius = propose.RADIUS * propose.SHRINK ** (move - 1)
        count = self.spec.candidates or DEFAULT_CANDIDATES
        return propose.around(self.space, beams, radius, count, seed)

    def surrogate(self) -> Surrogate | None:
        """Fitted to what has finished; None if it is not asked for, or too little has."""
        if self.sweep.surrogate is None or self.judgement is None:
            return None
        scored = [candidate for candidate in self.judgement.candidates if candidate.id in self.judgement.sound]
        if len(scored) < self.space.num_dimensions + 2:
            return None
        return Surrogate.fitted(
            np.array([self.space.coordinates(self.points[candidate.id]) for candidate in scored]),
            np.array([_score(candidate) for candidate in scored]),
            np.array([self.judgement.noise.deviation**2 / self.judgement.num_finished[one.id] for one in scored]),
        )

    def _first_stage_points(self, round_number: int, count: int, seed: int) -> Iterable[Proposal]:
        if self.sweep.searcher == "random":
            return propose.at_random(self.space, count, seed)
        if self.sweep.searcher == "grid":
            in_all = (self.spec.candidates or DEFAULT_CANDIDATES) * self.spec.rounds - 1
            return [Proposal(point, "spread") for point in self.space.grid(in_all)]
        if self.sweep.searcher == "optuna":
            each = self.spec.candidates or DEFAULT_CANDIDATES
            rounds = [each - 1, *[each] * round_number]
            return propose.by_optuna(self.space, rounds, self._outcome, propose.seeded(self.sweep.seed))
        return propose.spread(self.space, count, seed)

    def _outcome(self, point: Point) -> Outcome:
        assert self.judgement is not None
        for candidate in self.judgement.candidates:
            if self.points[candidate.id] != point:
                continue
            stopped = [self.ended[name] for name in candidate.trials if self.ended[name].status == "stopped"]
            for trial in stopped:
                if trial.rungs:
                    return Outcome(rung=max(trial.rungs.items()))
            is_failed = any(self.ended[name].status == "failed" for name in candidate.trials)
            return Outcome(score=None if is_failed or candidate.score is None else candidate.score.value)
        return Outcome()

    def _promoted(self) -> list[Proposal]:
        """The beams of the stage before, best first, as many as there is room for."""
        assert self.before is not None
        beams = [name for name in self.before.beams if self.before.points[name] != self.space.base]
        if self.spec.candidates is not None:
            beams = beams[: self.spec.candidates - 1]
        room = self._room() - self.spec.num_trials(is_base=True)
        while beams and len(beams) * self.spec.seeds > room:
            beams.pop()
        return [Proposal(self.before.points[name], "promoted", name) for name in beams]

    def _without_each_source(self) -> list[Proposal]:
        room = self._room() - self.spec.num_trials(is_base=True)
        sources = [
            source.name for source in self.sweep.base.data.sources if source.name not in self.sweep.base.data.leave_out
        ]
        if room < len(sources) * self.spec.seeds:
            sources = sources[: int(room) // self.spec.seeds]
        return [Proposal(self.space.base, "without_source", left_out=source) for source in sources]


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score.value


def _results(
    spec: SweepSpec, stages: list[_Stage], planned: list[PlannedTrial], ended: Mapping[str, Trial]
) -> SweepResults:
    trials = [ended.get(trial.id) or _pending(trial) for trial in planned]
    candidates = [candidate for number in range(len(stages)) for candidate in _candidates(stages, number)]
    decided = [stage for stage in stages if stage.best is not None]
    return SweepResults(
        stages=[
            _stage_result(stages[n]) if n < len(stages) else StageResult(name=one.name, status="pending")
            for n, one in enumerate(spec.stages)
        ],
        candidates=candidates,
        trials=trials,
        agreements=_agreements(spec, stages),
        best=decided[-1].best if decided else None,
        contributions=_contributions(candidates),
        worker_seconds=math.fsum(trial.worker_seconds for trial in trials),
    )


def _pending(trial: PlannedTrial) -> Trial:
    return Trial(id=trial.id, candidate=trial.candidate, stage=trial.stage, seed=trial.seed, status="pending")


def _candidates(stages: list[_Stage], number: int) -> list[Candidate]:
    stage = stages[number]
    if stage.judgement is None:
        return []
    later = stages[number + 1].judgement if number + 1 < len(stages) else None
    promoted = {candidate.parent for candidate in later.candidates if candidate.role == "promoted"} if later else set()
    return [
        candidate.model_copy(update={"is_beam": candidate.id in stage.beams, "is_promoted": candidate.id in promoted})
        for candidate in stage.judgement.candidates
    ]


def _stage_result(stage: _Stage) -> StageResult:
    surrogate = stage.surrogate()
    noise = stage.judgement.noise if stage.judgement else Noise()
    return StageResult(
        name=stage.spec.name,
        status="running" if stage.is_due else "finished",
        num_trials=len(stage.planned),
        noise=noise.deviation if noise.degrees else None,
        noise_degrees=noise.degrees,
        clear_errors=noise.clear_errors(),
        ended_by=stage.ended_by,
        best_score_by_round=stage.best_score_by_round,
        surrogate_error=surrogate.leave_one_out_error() if surrogate else None,
    )


def _agreements(spec: SweepSpec, stages: list[_Stage]) -> list[Agreement]:
    scores = {
        stage.spec.name: {
            stage.points[one.id].key: _score(one)
            for one in stage.judgement.candidates
            if one.id in stage.judgement.sound
        }
        for stage in stages
        if stage.judgement is not None
    }
    return [
        agreement(first.name, second.name, scores[first.name], scores[second.name])
        for first, second in combinations(spec.stages, 2)
        if scores.get(first.name) and scores.get(second.name)
    ]


def _contributions(candidates: list[Candidate]) -> dict[str, Estimate]:
    return {
        one.left_out: Estimate(value=-one.score.value, noise=one.score.noise)
        for one in candidates
        if one.left_out is not None and one.score is not None
    }
