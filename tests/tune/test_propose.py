"""Spaces with further axes, the surrogate, and Optuna."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest

from ray_jobs.tune.beam import advance
from ray_jobs.tune.propose import Outcome, by_optuna
from ray_jobs.tune.space import Point, Space
from ray_jobs.tune.surrogate import Surrogate
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import SweepResults, Trial
from tests.tune.surfaces import SETTINGS, document, ended_trial

BOWL = SETTINGS[0]
RATE = {"kind": "range", "path": "train.learning_rate", "low": 1e-5, "high": 1e-3, "log": True}
LENGTH = {"kind": "choice", "path": "data.sequence_length", "values": [64, 128, 256]}


def sweep(**more: Any) -> SweepSpec:
    stage = {"name": "proxy", "max_steps": 10, "rounds": 3}
    return SweepSpec.model_validate(document(BOWL.surface, BOWL.base, **{"stages": [stage]} | more))


def run(spec: SweepSpec, noise: float = 0.002) -> SweepResults:
    ended: dict[str, Trial] = {}
    while not (step := advance(spec, BOWL.base, ended)).is_finished:
        for planned in step.due:
            ended[planned.id] = ended_trial(BOWL.surface, planned, BOWL.base, noise, luck=0)
    return step.results


def test_further_axes_are_searched_with_the_mix() -> None:
    results = run(sweep(axes={"fields": [RATE, LENGTH]}))
    base, *others = results.candidates
    assert base.fields == {}
    rates = [one.fields["train.learning_rate"] for one in others]
    assert all(isinstance(rate, float) and 1e-5 <= rate <= 1e-3 for rate in rates)
    assert all(float(f"{rate:.4g}") == rate for rate in rates)
    assert {one.fields["data.sequence_length"] for one in others} == {64, 128, 256}
    assert {(one.fields["train.learning_rate"], one.fields["data.sequence_length"]) for one in others[:3]} == {
        (2e-5, 64)
    }


def test_coordinates_and_points_lead_back_and_forth() -> None:
    space = Space.of(sweep(axes={"fields": [RATE, LENGTH]}), BOWL.base)
    [point] = space.from_cube(np.array([[0.3, 0.6, 0.5, 0.9]]))
    assert point.values == (1e-4, 256)
    assert space.coordinates(point)[-2:].tolist() == [pytest.approx(0.5), pytest.approx(5 / 6)]
    assert space.near(space.coordinates(point)) == point
    assert space.base == Point((0.3334, 0.3333, 0.3333), (2e-5, 64))
    assert len(space.grid(60)) == 54  # 6 mixes, 3 rates, 3 lengths


def test_bounds_hold_for_all_but_the_base_mix() -> None:
    results = run(sweep(axes={"mixture": {"chat": {"max": 0.4}, "code": {"min": 0.3}, "general": {}}}))
    assert all(
        one.mixture["chat"] <= 0.4 and one.mixture["code"] >= 0.3 for one in results.candidates[1:] if one.mixture
    )


def process(noise: float) -> tuple[Surrogate, np.ndarray]:
    seen_NC = np.random.default_rng(0).dirichlet(np.ones(3), size=14)
    return Surrogate.fitted(seen_NC, -BOWL.surface.loss(seen_NC), np.full(14, noise**2)), seen_NC


def test_a_surrogate_passes_through_exact_scores_and_knows_what_it_does_not_know() -> None:
    surrogate, seen_NC = process(0.0)
    mean, deviation = surrogate.predict(seen_NC)
    assert mean == pytest.approx(-BOWL.surface.loss(seen_NC), abs=1e-3)
    assert deviation.max() < 0.01
    _, far = surrogate.predict(np.array([[9.0, -8.0, 0.0]]))
    assert far[0] == pytest.approx(np.sqrt(surrogate.amplitude))
    noisy, _ = process(0.3)
    assert (noisy.predict(seen_NC)[1] > deviation).all()


def test_leave_one_out_error_is_that_of_fits_without_each() -> None:
    surrogate, _ = process(0.05)
    errors = []
    for left_out in range(14):
        kept = np.arange(14) != left_out
        without = replace(
            surrogate,
            seen_NC=surrogate.seen_NC[kept],
            scores_N=surrogate.scores_N[kept],
            variance_N=surrogate.variance_N[kept],
        )
        errors.append(without.predict(surrogate.seen_NC[left_out][None])[0][0] - surrogate.scores_N[left_out])
    assert surrogate.leave_one_out_error() == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)


def test_expected_improvement_is_the_mean_of_improvements() -> None:
    surrogate, seen_NC = process(0.05)
    asked = np.array([[0.5, 0.2, 0.3]])
    mean, deviation = surrogate.predict(asked)
    drawn = mean + deviation * np.random.default_rng(0).normal(size=200_000)
    best = surrogate.predict(seen_NC)[0].max()
    # the mean of 200,000 draws errs by less than their deviation / 447
    assert surrogate.expected_improvement(asked)[0] == pytest.approx(
        np.maximum(drawn - best, 0).mean(), abs=4 * deviation[0] / 447
    )
    assert (surrogate.believing(asked[0]).predict(asked)[1] < deviation).all()


def test_a_surrogate_proposes_its_share_of_later_rounds_and_tells_its_error() -> None:
    results = run(sweep(surrogate={"share": 0.25}))
    roles = [[one.role for one in results.candidates if one.round == number] for number in range(3)]
    assert "surrogate" not in roles[0]
    assert [number.count("surrogate") for number in roles[1:]] == [2, 2]
    least = run(sweep(surrogate={"share": 0.01}))
    assert sum(one.role == "surrogate" for one in least.candidates if one.round == 1) == 1
    error = results.stages[0].surrogate_error
    assert error is not None
    assert 0 < error < 0.2
    assert run(sweep()).stages[0].surrogate_error is None


def test_what_the_surrogate_foretold_stays_as_it_was_before_the_trials() -> None:
    results = run(sweep(surrogate={"share": 0.25}))
    assert all(one.predicted is None for one in results.candidates if one.round == 0)
    foretold = [one for one in results.candidates if one.round > 0]
    told = [(one.predicted, one.score) for one in foretold if one.predicted is not None and one.score is not None]
    assert len(told) == len(foretold) == 16
    assert all(prediction.noise for prediction, _ in told)
    assert any(prediction.value != pytest.approx(score.value, abs=1e-4) for prediction, score in told)
    scores = [score.value for _, score in told]
    errors = [prediction.value - score.value for prediction, score in told]
    assert np.square(errors).mean() < np.var(scores), "better than their mean would have been"
    after_first_round = next(one for one in foretold if one.round == 1).predicted
    [again] = [one.predicted for one in results.candidates if one.id == foretold[0].id]
    assert again == after_first_round
    assert all(one.predicted is None for one in run(sweep()).candidates)


def test_a_surrogate_that_expects_no_gain_beyond_the_noise_ends_the_stage() -> None:
    stage = {"name": "proxy", "max_steps": 10, "rounds": 4}
    [without] = run(sweep(stages=[stage]), noise=0.5).stages
    [found] = run(sweep(stages=[stage], surrogate={"share": 0.5}), noise=0.5).stages
    assert [len(one.best_score_by_round) for one in (without, found)] == [3, 2], "one round without a gain, not two"
    assert found.ended_by == "no_gain"


def test_an_axis_may_begin_where_the_base_job_has_no_value() -> None:
    factor = {"kind": "range", "path": "train.capacity_factor", "low": 1, "high": 2}
    stage = {"name": "proxy", "max_steps": 10, "rounds": 2, "candidates": 5}
    results = run(sweep(stages=[stage], axes={"fields": [factor]}, surrogate={}))
    assert len(results.stages[0].best_score_by_round) == 2


def test_optuna_learns_from_what_has_ended_and_can_be_asked_again() -> None:
    spec = sweep(searcher="optuna", stages=[{"name": "proxy", "max_steps": 10, "rounds": 6, "candidates": 6}])
    results = run(spec)
    assert results == run(spec)
    losses = [BOWL.surface.loss(np.array([list((one.mixture or {}).values())]))[0] for one in results.candidates[1:]]
    assert np.median(losses[-12:]) < np.median(losses[:12])


@pytest.mark.parametrize(
    ("outcome", "state"), [(Outcome(rung=(3, -0.5)), "PRUNED"), (Outcome(), "FAIL"), (Outcome(0.1), "COMPLETE")]
)
def test_optuna_is_told_how_each_candidate_ended(outcome: Outcome, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told, tell = [], optuna.study.Study.tell
    monkeypatch.setattr(
        optuna.study.Study, "tell", lambda *given, **options: told.append(tell(*given, **options).state.name)
    )
    by_optuna(Space.of(sweep(), BOWL.base), [2, 3], lambda _: outcome, 0)
    assert told == [state] * 2


def test_a_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sleddog\[optuna\]'"):
        advance(sweep(searcher="optuna"), BOWL.base, {})
