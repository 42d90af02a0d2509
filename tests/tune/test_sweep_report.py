"""What a sweep's report says, in words, tables and pictures."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ray_jobs.tune.objective import Noise
from ray_jobs.tune.pareto import pareto_front
from ray_jobs.tune.pictures import curves, mixes
from ray_jobs.tune.report_page import page
from ray_jobs.tune.verdict import verdict
from service.spec.sweep import SweepSpec
from service.spec.sweep_results import Agreement, Candidate, Estimate, StageResult, SweepResults, Trial


@pytest.fixture
def spec(job_document: dict[str, Any]) -> SweepSpec:
    [source] = job_document["data"]["sources"]
    job_document["data"]["sources"] = [source | {"name": name, "category": name} for name in ("chat", "code", "math")]
    return SweepSpec.model_validate(
        {
            "name": "mixes",
            "base": job_document,
            "stages": [{"name": "small", "max_steps": 4}],
            "objective": {"metrics": [{"name": f"held_out_loss.{name}"} for name in ("code", "math")]},
        }
    )


def candidate(number: int, score: float, *, noise: float | None = 0.01, **fields: Any) -> Candidate:
    gains = {"held_out_loss.code": score - 0.02, "held_out_loss.math": score + 0.02}
    values: dict[str, Any] = {
        "id": f"c{number}",
        "stage": "small",
        "round": 0,
        "role": "spread",
        "mixture": {"chat": 0.5, "code": 0.3, "math": 0.2},
        "gains": {name: Estimate(value=value, noise=noise) for name, value in gains.items()},
        "score": Estimate(value=score, noise=noise),
        "rank": number + 1,
    }
    return Candidate(**values | fields)


def results(*candidates: Candidate, degrees: int = 20, **fields: Any) -> SweepResults:
    trials = [
        Trial(
            id=f"{one.id}-s0", candidate=one.id, stage="small", seed=0, status="succeeded", curve=[(1, 3.0), (4, 2.0)]
        )
        for one in candidates
    ]
    stage = StageResult(name="small", status="finished", num_trials=len(trials), noise=0.004, ended_by="no_gain")
    stage = stage.model_copy(update={"noise_degrees": degrees, "clear_errors": Noise(degrees=degrees).clear_errors()})
    values: dict[str, Any] = {"stages": [stage], "candidates": candidates, "trials": trials, "best": candidates[0].id}
    return SweepResults(**values | fields)


@pytest.mark.parametrize(
    ("score", "noise", "said"),
    [
        (0.05, 0.01, "better than the base mix"),
        (0.015, 0.01, "not better than the base mix beyond the noise"),
        (0.05, None, "higher than the base mix, by what no second seed confirms"),
        (-0.05, 0.01, "nothing that may be chosen scored above the base mix"),
    ],
)
def test_the_verdict_claims_what_the_noise_allows(
    spec: SweepSpec, score: float, noise: float | None, said: str
) -> None:
    sentences = " ".join(verdict(spec, results(candidate(0, score, noise=noise), candidate(1, 0.0, role="base"))))
    assert said in sentences
    assert ("better than the base mix." in sentences) == (said == "better than the base mix")


def test_the_verdict_names_what_is_paid_and_how_far_a_proxy_is_to_be_trusted(spec: SweepSpec) -> None:
    gains = {
        "held_out_loss.code": Estimate(value=-0.05, noise=0.01),
        "held_out_loss.math": Estimate(value=0.2, noise=0.01),
    }
    told = results(
        candidate(0, 0.075, gains=gains),
        candidate(1, 0.0, role="base"),
        candidate(2, 0.08, broken=["held_out_loss.math"], mixture={"chat": 0.0, "code": 1.0, "math": 0.0}, rank=3),
        agreements=[Agreement(first="small", second="large", num_candidates=4, spearman=0.1, same_best=False)],
        worker_seconds=7200.0,
        prepare_seconds=33.0,
    )
    sentences = " ".join(verdict(spec, told))
    assert "chat 50.0%, code 30.0%, math 20.0%" in sentences
    assert "pays with held_out_loss.code" in sentences
    assert "scored above it but break a constraint: 1. Of these highest is code 100.0%" in sentences
    assert "it breaks that on held_out_loss.math" in sentences
    assert "small does not predict large here" in sentences
    assert "varies by 0.40% between seeds (degrees of freedom: 20); it ended because two rounds" in sentences
    assert "2.00 worker hours for 3 trials; the data was prepared once, in 33 s" in sentences


@pytest.mark.parametrize(
    ("degrees", "rivals", "is_clear"),
    [
        (20, 1, True),  # 3.2 errors, where 2.1 are clear
        (2, 1, False),  # 4.5
        (20, 12, False),  # of the best of twelve 3.4
        (1000, 12, True),  # 2.9
    ],
)
def test_few_seeds_and_many_candidates_make_a_verdict_careful(
    spec: SweepSpec, degrees: int, rivals: int, is_clear: bool
) -> None:
    others = [candidate(number + 1, 0.0) for number in range(rivals - 1)]
    told = results(candidate(0, 0.032), *others, candidate(99, 0.0, role="base"), degrees=degrees)
    sentences = " ".join(verdict(spec, told))
    assert ("better than the base mix." in sentences) == is_clear
    assert (f"of {rivals} candidates and so few seeds, " in sentences) != is_clear


def test_what_nobody_may_choose_is_told_beside_the_base_mix(spec: SweepSpec) -> None:
    told = results(candidate(0, 0.0, role="base"), candidate(1, 0.05, broken=["held_out_loss.code"]))
    sentences = " ".join(verdict(spec, told))
    assert "nothing that may be chosen scored above the base mix: keep it" in sentences
    assert "+5.00% ± 1.00%; it breaks that on held_out_loss.code" in sentences


def test_without_a_base_mix_nothing_was_found(spec: SweepSpec) -> None:
    stage = StageResult(name="small", status="finished", ended_by="baseline_failed")
    told = results(candidate(0, 0.0).model_copy(update={"score": None}), best=None, stages=[stage])
    assert verdict(spec, told)[0] == "Nothing was found, for there is nothing to compare candidates with."
    assert verdict(spec, told.model_copy(update={"stages": []}))[0] == "No candidate has finished all its trials."


@pytest.mark.parametrize(
    ("spearman", "chance", "said"),
    [
        (1.0, 1 / 24, "small is a good proxy here"),
        (1.0, 1 / 6, "small may be a good proxy, but 17% of all orders agree as well by chance"),
        (0.5, 0.2, "small is a rough guide only"),
        (None, None, "too few candidates in common to compare ranks, or too alike"),
    ],
)
def test_a_proxy_is_trusted_as_far_as_chance_allows(
    spec: SweepSpec, spearman: float | None, chance: float | None, said: str
) -> None:
    one = Agreement(first="small", second="large", num_candidates=4, spearman=spearman, chance=chance, same_best=True)
    assert said in " ".join(verdict(spec, results(candidate(0, 0.0, role="base"), agreements=[one])))


def test_what_a_surrogate_foretold_is_held_against_what_came(spec: SweepSpec) -> None:
    told = results(
        candidate(0, 0.05, predicted=Estimate(value=0.04, noise=0.01)),
        candidate(1, 0.01, predicted=Estimate(value=0.06, noise=0.01)),
        candidate(2, 0.0, role="base"),
    )
    sentences = " ".join(verdict(spec, told))
    # root mean square of 1 and 5 %; each within two of 1.4 %, or not
    assert "foretold the scores of 2 candidates with an error of 3.61% (root mean square); 1 came within" in sentences
    assert "foretold</th>" in page(spec, told)
    assert "foretold" not in page(spec, results(candidate(0, 0.05)))


def test_the_front_leaves_out_what_did_not_finish(spec: SweepSpec) -> None:
    told = results(candidate(0, 0.05), candidate(1, 0.09), candidate(2, 0.0, role="base"))
    section = "no other candidate is better in every metric"
    front = page(spec, told).split(section)[1].split("<h2>")[0]
    assert (front.count(">c1</td>"), front.count(">c0</td>")) == (1, 0)
    failed = [one.model_copy(update={"status": "failed"}) if one.id == "c1-s0" else one for one in told.trials]
    front = page(spec, told.model_copy(update={"trials": failed})).split(section)[1].split("<h2>")[0]
    assert (front.count(">c1</td>"), front.count(">c0</td>")) == (0, 1)


def test_left_out_sources_are_ranked_by_what_they_give(spec: SweepSpec) -> None:
    spec = spec.model_copy(update={"searcher": "leave_one_out"})
    told = results(
        candidate(0, 0.0, role="base"),
        candidate(1, 0.06, left_out="chat"),
        candidate(2, -0.08, left_out="code"),
        candidate(3, -0.01, left_out="math"),
    )
    [first, *others] = spec.base.data.sources
    data = spec.base.data.model_copy(update={"sources": (first, *others, first.model_copy(update={"name": "late"}))})
    spec = spec.model_copy(update={"base": spec.base.model_copy(update={"data": data})})
    assert verdict(spec, told)[3] == "Not tried, for max_trials left no room: late."
    assert verdict(spec, told)[:3] == [
        "Without code the score changes by -8.00% ± 1.00%: it helps.",
        "Without math the score changes by -1.00% ± 1.00%: what it contributes is not above the noise.",
        "Without chat the score changes by +6.00% ± 1.00%: it harms.",
    ]


def test_the_front_holds_what_no_other_beats() -> None:
    def of(number: int, code: float, math: float) -> Candidate:
        return candidate(number, (code + math) / 2, gains={"code": Estimate(value=code), "math": Estimate(value=math)})

    best, other, beaten, equal = of(0, 3, 1), of(1, 1, 2), of(2, 1, 1), of(3, 3, 1)
    assert pareto_front([beaten, other, best, equal], ["code", "math"]) == [best, equal, other]
    assert pareto_front([candidate(4, 1.0).model_copy(update={"score": None})], ["held_out_loss.code"]) == []


def test_the_page_tells_every_trial_and_escapes_every_word(spec: SweepSpec) -> None:
    bad = candidate(1, 0.0, fields={"train.schedule": "<b>"}, parent="c0")
    told = results(candidate(0, 0.05, is_beam=True), bad)
    html = page(spec, told.model_copy(update={"verdict": verdict(spec, told)}))
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "<script" not in html
    assert all(trial.id in html for trial in told.trials)
    assert html.count("<circle") == 2
    assert html.count("<polygon") == 1, "three categories make a triangle"


def test_mixes_stand_in_the_triangle_by_their_shares() -> None:
    corners = [{"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0}, {"a": 0.0, "b": 0.0, "c": 1.0}]
    middle = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    picture = mixes([candidate(n, 0.1 * n, mixture=mix) for n, mix in enumerate([*corners, middle])], ["a", "b", "c"])
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)]
    [outline] = re.findall(r'<polygon points="([^"]+)"', picture)
    assert [tuple(map(float, pair.split(","))) for pair in outline.split()] == places[:3]
    for axis in (0, 1):
        assert places[3][axis] == pytest.approx(sum(place[axis] for place in places[:3]) / 3, abs=0.1)
    shades = [int(value) for value in re.findall(r"hsl\(205, 60%, (\d+)%\)", picture)]
    assert shades == sorted(shades, reverse=True), "the better, the darker"


def test_four_categories_stand_on_parallel_axes() -> None:
    shares = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    picture = mixes([candidate(0, 0.1, mixture=shares)], list(shares))
    assert picture.count("<line") == 4
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', picture)]
    assert heights == sorted(heights, reverse=True), "the more, the higher"
    assert mixes([candidate(0, 0.1, mixture=None)], list(shares)) == ""
    assert curves([], []) == ""
