"""The rule of a sweep: what runs next depends on what has ended, and on nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.tune.beam import Advance, advance
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Candidate, SweepResults, Trial
from tests.tune.surfaces import Surface, document, ended_trial, quadratic

SURFACE = Surface("bowl", 3, quadratic((0.5, 0.3, 0.2), (0.6, 0.8, 1.0)))
BASE = {"chat": 0.2, "code": 0.2, "general": 0.6}


def sweep(*stages: dict[str, Any], **more: Any) -> SweepSpec:
    named = [{"name": f"stage{n}", "max_steps": 10} | stage for n, stage in enumerate(stages or ({},))]
    return SweepSpec.model_validate(document(SURFACE, BASE, stages=named, **more))


def run(spec: SweepSpec, noise: float = 0.002, fates: Mapping[str, dict[str, Any]] | None = None) -> SweepResults:
    """To the end; `fates` says otherwise of a trial."""
    ended: dict[str, Trial] = {}
    while not (step := advance(spec, BASE, ended)).is_finished:
        assert step.due
        for planned in step.due:
            trial = ended_trial(SURFACE, planned, BASE, noise, luck=0)
            ended[planned.id] = trial.model_copy(update=(fates or {}).get(planned.id, {}))
    assert not step.due
    return step.results


def of_stage(results: SweepResults, stage: str) -> list[Candidate]:
    return [candidate for candidate in results.candidates if candidate.stage == stage]


TWO_STAGES = sweep({"rounds": 3, "candidates": 6, "seeds": 2}, {"changes": {"train.tuning": "full"}})


def test_a_round_is_due_whole_and_nothing_beyond_it() -> None:
    step = advance(TWO_STAGES, BASE, {})
    assert [trial.candidate for trial in step.due[:3]] == ["stage0-r0-c0"] * 3
    assert [trial.id for trial in step.due[3:5]] == ["stage0-r0-c1-s0", "stage0-r0-c1-s1"]
    assert len(step.due) == 3 + 5 * 2
    assert {trial.status for trial in step.results.trials} == {"pending"}
    assert [stage.status for stage in step.results.stages] == ["running", "pending"]
    done = {trial.id: ended_trial(SURFACE, trial, BASE, 0.002, luck=0) for trial in step.due[:-1]}
    assert [trial.id for trial in advance(TWO_STAGES, BASE, done).due] == [step.due[-1].id]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_the_order_in_which_trials_end_never_matters(seed: int) -> None:
    random = Random(seed)
    ended: dict[str, Trial] = {}
    started: list[str] = []
    while not (step := advance(TWO_STAGES, BASE, ended)).is_finished:
        planned = random.choice(step.due)
        started.append(planned.id)
        ended[planned.id] = ended_trial(SURFACE, planned, BASE, 0.002, luck=0)
        shuffled = list(ended.items())
        random.shuffle(shuffled)
        ended = dict(shuffled)
    assert len(started) == len(set(started))
    assert step.results == run(TWO_STAGES)


def test_the_first_round_has_the_base_mix_the_corners_and_mixes_between_them() -> None:
    results = run(sweep({"candidates": 7}))
    assert [candidate.role for candidate in results.candidates] == ["base"] + ["corner"] * 3 + ["spread"] * 3
    assert results.candidates[0].mixture == BASE
    assert [max((one.mixture or {}).values()) for one in results.candidates[1:4]] == [1, 1, 1]
    assert results.stages[0].ended_by == "single_round"


def test_rounds_close_in_on_the_optimum() -> None:
    results = run(sweep({"rounds": 5}), noise=1e-5)
    best = next(candidate for candidate in results.candidates if candidate.id == results.best)
    assert best.rank == 1
    assert best.is_beam
    assert best.mixture is not None
    assert sum(abs(best.mixture[c] - x) for c, x in zip(SURFACE.categories, (0.5, 0.3, 0.2), strict=True)) / 2 < 0.05
    scores = results.stages[0].best_score_by_round
    assert scores == sorted(scores)
    parents = {candidate.parent for candidate in results.candidates if candidate.role == "neighbour"}
    assert parents <= {candidate.id for candidate in results.candidates}


def test_no_candidate_is_tried_twice_and_ids_are_safe() -> None:
    results = run(sweep({"rounds": 4, "candidates": 12}), noise=1e-5)
    mixes = [tuple((candidate.mixture or {}).values()) for candidate in results.candidates]
    assert len(mixes) == len(set(mixes))
    assert all(re.fullmatch(r"stage0-r\d+-c\d+-s\d+", trial.id) for trial in results.trials)
    assert len({trial.id for trial in results.trials}) == len(results.trials)


def test_a_space_that_is_used_up_ends_the_stage() -> None:
    axis = {"kind": "choice", "path": "data.sequence_length", "values": [64, 128]}
    fixed = {"chat": {"min": 0.2, "max": 0.2}, "code": {"min": 0.2, "max": 0.2}, "general": {}}
    results = run(sweep({"rounds": 3}, axes={"mixture": fixed, "fields": [axis]}), noise=1e-9)
    assert [candidate.fields for candidate in results.candidates] == [{}, {"data.sequence_length": 128}]
    assert results.stages[0].ended_by == "exhausted"


def test_a_round_without_gain_beyond_the_noise_is_the_last() -> None:
    results = run(sweep({"rounds": 9}), noise=0.05)
    assert results.stages[0].ended_by == "no_gain"
    assert len(results.stages[0].best_score_by_round) < 9


def test_beams_go_on_to_the_next_stage_with_the_base_mix() -> None:
    results = run(TWO_STAGES)
    beams = {candidate.id for candidate in of_stage(results, "stage0") if candidate.is_beam}
    assert 3 <= len(beams) <= 6
    promoted = [candidate for candidate in of_stage(results, "stage1") if candidate.role == "promoted"]
    assert {candidate.parent for candidate in promoted} == beams - {"stage0-r0-c0"}
    assert {one.id for one in of_stage(results, "stage0") if one.is_promoted} == {one.parent for one in promoted}
    by_id = {candidate.id: candidate for candidate in results.candidates}
    assert all(candidate.mixture == by_id[candidate.parent or ""].mixture for candidate in promoted)
    [agreement] = results.agreements
    assert (agreement.first, agreement.second) == ("stage0", "stage1")
    assert agreement.num_candidates == len(promoted) + 1
    assert results.best is not None
    assert results.best.startswith("stage1-")


def test_every_stage_is_compared_with_every_later_one() -> None:
    results = run(sweep({"candidates": 6}, {"changes": {"train.tuning": "frozen_moe"}}, {}), noise=1e-6)
    pairs = [(one.first, one.second) for one in results.agreements]
    assert pairs == [("stage0", "stage1"), ("stage0", "stage2"), ("stage1", "stage2")]
    assert all(one.spearman == pytest.approx(1) and one.same_best for one in results.agreements)


def test_a_later_stages_further_rounds_are_begun_only_where_there_is_room() -> None:
    # 3 + 5 trials, then 3 + 2 (the third beam is the base mix) and 4 a round; a third stage may need 3 + 3
    for most, num_rounds in ((22, 1), (23, 2), (26, 2), (27, 3)):
        results = run(
            sweep({"candidates": 6}, {"candidates": 4, "rounds": 3}, {"candidates": 4}, max_trials=most), noise=1e-7
        )
        assert len(results.stages[1].best_score_by_round) == num_rounds
        assert len(results.trials) <= most


def test_a_later_stage_narrows_on_whatever_searched_before() -> None:
    results = run(sweep({"candidates": 6}, {"candidates": 4, "rounds": 2}, searcher="random"), noise=1e-7)
    assert {one.role for one in of_stage(results, "stage1") if one.round == 1} == {"neighbour"}


def test_steps_shrink_from_stage_to_stage() -> None:
    def farthest(*stages: dict[str, Any]) -> float:
        results = run(sweep(*stages), noise=1e-7)
        last = of_stage(results, results.stages[-1].name)
        by_id = {one.id: one for one in last}
        moved = [
            sum(abs((one.mixture or {})[c] - (by_id[one.parent or ""].mixture or {})[c]) for c in SURFACE.categories)
            / 2
            for one in last
            if one.role == "neighbour"
        ]
        return max(moved[1:])  # the first is the mean of the beams

    # a quarter of the mix at first, 0.7 times as much in each further round, whatever the stage
    assert 0.125 < farthest({"rounds": 2, "candidates": 20}) <= 0.2501
    assert farthest({"rounds": 2}, {"rounds": 2, "candidates": 20}) <= 0.7 * 0.25 + 1e-3


def test_beams_are_dropped_only_beyond_the_noise_and_never_more_than_twice_as_many_kept() -> None:
    noisy = run(sweep({"candidates": 12, "beam_width": 2}), noise=0.5)
    assert sum(one.is_beam for one in noisy.candidates) == 4
    exact = run(sweep({"candidates": 12, "beam_width": 2}), noise=1e-7)
    assert sum(one.is_beam for one in exact.candidates) == 2
    assert {one.rank for one in exact.candidates if one.is_beam} == {1, 2}


def test_one_round_without_gain_is_not_the_last() -> None:
    """The surface is flat but for noise, so each round's best is luck."""
    flat = Surface("flat", 3, quadratic((0.5, 0.3, 0.2), (0.0, 0.0, 0.0)))
    spec, ended = sweep({"rounds": 9}), dict[str, Trial]()
    while not (step := advance(spec, BASE, ended)).is_finished:
        ended |= {one.id: ended_trial(flat, one, BASE, 0.002, luck=3) for one in step.due}
    assert step.results.stages[0].ended_by == "no_gain"
    assert len(step.results.stages[0].best_score_by_round) == 3, "two rounds without a gain after the first"


def test_noise_may_keep_more_beams_than_there_is_room_for() -> None:
    stages: list[dict[str, Any]] = [{"beam_width": 2}, {"seeds": 2}]
    free = run(sweep(*stages), noise=0.5)
    assert len(of_stage(free, "stage1")) > 3
    results = run(sweep(*stages, max_trials=3 + 7 + 3 + 2 * 2), noise=0.5)
    promoted = [one.parent for one in of_stage(results, "stage1") if one.role == "promoted"]
    ranks = sorted(one.rank or 0 for one in of_stage(results, "stage0") if one.is_beam and one.role != "base")
    assert len(promoted) == 2
    assert sorted(one.rank or 0 for one in of_stage(results, "stage0") if one.id in promoted) == ranks[:2]


def test_other_searchers_go_on_without_a_gain() -> None:
    results = run(sweep({"rounds": 5, "candidates": 4}, searcher="random"), noise=0.5)
    assert results.stages[0].ended_by == "rounds"
    assert len(results.stages[0].best_score_by_round) == 5


def test_one_finished_seed_of_the_base_mix_tells_no_noise() -> None:
    failed = {"stage0-r0-c0-s1": {"status": "failed", "metrics": {}}}
    [stage] = run(sweep({"baseline_seeds": 2}), fates=failed).stages
    assert (stage.noise, stage.noise_degrees, stage.clear_errors) == (None, 0, None)
    [stage] = run(sweep({"baseline_seeds": 2, "seeds": 2})).stages
    assert stage.noise_degrees == 8


def test_stages_are_compared_by_what_finished_in_both() -> None:
    stages: list[dict[str, Any]] = [{"candidates": 6}, {"seeds": 2}]
    [sound] = run(sweep(*stages), noise=1e-7).agreements
    fates = {"stage1-r0-c1-s1": {"status": "failed", "metrics": {}}}
    [without] = run(sweep(*stages), noise=1e-7, fates=fates).agreements
    assert without.num_candidates == sound.num_candidates - 1


@pytest.mark.parametrize(
    "more",
    [
        {"axes": {"mixture": {"chat": {}, "code": {"max": 0}, "general": {"max": 0}}}},  # bounds that leave one point
        {"axes": {"mixture": {name: {"min": 0.2, "max": 0.6} for name in BASE}}},
        {"searcher": "grid"},
        {"surrogate": {}},
    ],
)
def test_a_stage_may_have_more_beams_than_candidates(more: dict[str, Any]) -> None:
    results = run(sweep({"candidates": 2, "beam_width": 9, "rounds": 3}, {"beam_width": 9}, **more))
    assert results.best is not None
    mixes = [str(one.mixture) for one in of_stage(results, "stage0")]
    assert len(mixes) == len(set(mixes))


def test_a_single_category_is_searched_by_its_further_axes_only() -> None:
    body = document(
        Surface("one", 1, quadratic((1.0,), (1.0,))), {"chat": 1.0}, stages=[{"name": "a", "max_steps": 4, "rounds": 2}]
    )
    assert [trial.mixture for trial in advance(SweepSpec.model_validate(body), {"chat": 1.0}, {}).due] == [
        {"chat": 1.0}
    ] * 3
    rate = {"kind": "range", "path": "train.learning_rate", "low": 1e-5, "high": 1e-3, "log": True}
    step = advance(SweepSpec.model_validate(body | {"axes": {"fields": [rate]}}), {"chat": 1.0}, {})
    rates = [trial.fields.get("train.learning_rate") for trial in step.due[3:]]
    assert len(rates) == len(set(rates)) == 7


def test_where_everything_breaks_a_constraint_the_base_mix_stays() -> None:
    spec = sweep({"rounds": 2}, {})
    by_chat = {
        "metrics": [{"name": "held_out_loss"}],
        "constraints": [{"metric": "held_out_loss.chat", "max_worsening": 0}],
    }
    spec = SweepSpec.model_validate(spec.model_dump(mode="json") | {"objective": by_chat})
    ended: dict[str, Trial] = {}
    while not (step := advance(spec, BASE, ended)).is_finished:
        for planned in step.due:
            trial = ended_trial(SURFACE, planned, BASE, 1e-6, luck=0)
            chat = 1.0 if planned.mixture == BASE else 2.0
            ended[planned.id] = trial.model_copy(update={"metrics": trial.metrics | {"held_out_loss.chat": chat}})
    assert all(one.broken == ["held_out_loss.chat"] for one in step.results.candidates if one.role != "base")
    best = next(one for one in step.results.candidates if one.id == step.results.best)
    assert (best.role, best.stage, best.rank) == ("base", "stage1", 1)
    assert [one.role for one in of_stage(step.results, "stage1")] == ["base"]


def test_a_later_stage_takes_as_many_beams_as_it_has_candidates() -> None:
    results = run(sweep({}, {"candidates": 2}))
    [_base, promoted] = of_stage(results, "stage1")
    assert promoted.parent == next(one.id for one in of_stage(results, "stage0") if one.rank == 1)


def test_trials_never_exceed_the_most_allowed_and_the_later_stage_has_its_share() -> None:
    # 8 and 9 trials are the first rounds of the two stages, and 6 a further one of the first
    for most, num_rounds in ((17, 1), (22, 1), (23, 2)):
        results = run(sweep({"rounds": 9, "candidates": 6}, {"seeds": 2}, max_trials=most), noise=1e-6)
        assert len(results.trials) <= most
        assert len(results.stages[0].best_score_by_round) == num_rounds
        assert len(of_stage(results, "stage1")) >= 3


def test_too_few_trials_for_the_first_rounds_are_refused_when_posted() -> None:
    with pytest.raises(ValidationError, match="the first rounds of the stages alone are 17 trials"):
        sweep({"candidates": 6}, {"seeds": 2}, max_trials=16)
    sweep({"candidates": 6}, {"seeds": 2}, max_trials=17)


def test_a_failed_trial_makes_its_candidate_the_last() -> None:
    best = run(sweep({"seeds": 2})).best
    results = run(sweep({"seeds": 2}), fates={f"{best}-s1": {"status": "failed", "metrics": {}}})
    failed = next(candidate for candidate in results.candidates if candidate.id == best)
    assert failed.rank == len(results.candidates)
    assert not failed.is_beam


def test_without_a_finished_trial_of_the_base_mix_there_is_no_best() -> None:
    fates = {f"stage0-r0-c0-s{n}": {"status": "failed", "metrics": {}} for n in range(3)}
    results = run(sweep({"rounds": 2}, {}), fates=fates)
    assert results.best is None
    assert [stage.ended_by for stage in results.stages] == ["baseline_failed", None]
    assert all(candidate.score is None for candidate in results.candidates)


def test_one_failed_seed_of_the_base_mix_does_no_harm() -> None:
    results = run(sweep(), fates={"stage0-r0-c0-s1": {"status": "failed", "metrics": {}}})
    assert results.best is not None
    assert results.stages[0].noise


def test_candidates_share_their_seeds() -> None:
    step = advance(sweep({"seeds": 2}, seed=2**32 - 1), BASE, {})
    assert [trial.seed for trial in step.due[:5]] == [2**32 - 1, 0, 1, 2**32 - 1, 0]


def test_a_strangers_trial_is_refused() -> None:
    stranger = Trial(id="other-r0-c0-s0", candidate="other-r0-c0", stage="other", seed=0, status="succeeded")
    with pytest.raises(ValueError, match="'other-r0-c0-s0' is of another sweep"):
        advance(sweep(), BASE, {stranger.id: stranger})


def test_a_base_of_all_there_is_stays_so() -> None:
    spec = sweep()
    data = spec.base.data.model_copy(update={"mixture": None})
    spec = spec.model_copy(update={"base": spec.base.model_copy(update={"data": data})})
    step = advance(spec, BASE, {})
    assert step.due[0].mixture is None
    assert step.due[-1].mixture is not None


def leave_one_out(sources: list[str], mixture: dict[str, float] | None, **more: Any) -> Advance:
    """The first step, where a source named `math2` is of category `math`."""
    body = document(SURFACE, BASE, searcher="leave_one_out", **more)
    [first, *_] = body["base"]["data"]["sources"]
    body["base"]["data"]["sources"] = [
        first | {"name": name, "category": name.rstrip("0123456789")} for name in sources
    ]
    body["base"]["data"]["mixture"] = mixture and {name: {"share": share} for name, share in mixture.items()}
    return advance(SweepSpec.model_validate(body), mixture or {}, {})


def test_each_source_is_left_out_in_turn() -> None:
    step = leave_one_out(["chat", "math1", "math2"], {"chat": 3, "math": 1})
    assert [(trial.left_out, trial.mixture) for trial in step.due[2:]] == [
        (None, {"chat": 0.75, "math": 0.25}),
        ("chat", {"chat": 0.0, "math": 1.0}),
        ("math1", {"chat": 0.75, "math": 0.25}),
        ("math2", {"chat": 0.75, "math": 0.25}),
    ]
    assert [trial.left_out for trial in leave_one_out(["chat", "math"], None, max_trials=4).due] == [None] * 3 + [
        "chat"
    ]


def test_a_source_contributes_what_the_score_loses_without_it() -> None:
    spec = sweep({"seeds": 2}, searcher="leave_one_out")
    results = run(spec, noise=1e-6)
    # the loss at (1/2, 1/2, 0), and at the base mix
    without, base = 2 + 0.8 * 0.04 + 0.04, 2 + 0.6 * 0.09 + 0.8 * 0.01 + 0.16
    assert results.contributions["general"].value == pytest.approx((without - base) / base, abs=1e-4)
    assert set(results.contributions) == {"chat", "code", "general"}
    noise = results.stages[0].noise
    assert noise
    assert results.contributions["general"].noise == pytest.approx(noise * (1 / 2 + 1 / 3) ** 0.5)


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_other_searchers_use_all_their_rounds(searcher: str) -> None:
    results = run(sweep({"rounds": 2, "candidates": 4}, searcher=searcher), noise=0.5)
    assert len(results.candidates) == {"random": 8, "grid": 7}[searcher]  # 6 points on a grid in steps of a half
    assert results.stages[0].ended_by == "rounds"
    assert {candidate.role for candidate in results.candidates[1:]} == {"spread"}
