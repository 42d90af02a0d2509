"""The spec of a sweep: every fault is found when it is posted, and named by its path."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.spec.base import field_errors
from service.spec.sweep import SweepSpec, changed, mixture_of_base
from tests.conftest import set_at


def test_little_needs_to_be_said(sweep_document: dict[str, Any]) -> None:
    spec = SweepSpec.model_validate(sweep_document)
    assert {name: (bound.min, bound.max) for name, bound in spec.bounds().items()} == {
        "general": (0, 1),
        "math": (0, 1),
    }
    assert spec.searcher == "beam"
    assert SweepSpec.model_validate_json(spec.canonical_json()) == spec


LEARNING_RATE = {"kind": "range", "path": "train.learning_rate", "low": 1e-5, "high": 1e-3, "log": True}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("stages", [], "stages"),
        ("stages.0.max_steps", 0, "stages.0.max_steps"),
        ("stages", [{"name": "a", "max_steps": 1}] * 2, "stages.1.name"),
        ("stages.0.changes", {"train.epoch": 2}, "stages.0.changes"),
        ("stages.0.changes", {"nothing.there": 2}, "stages.0.changes"),
        ("stages.0.changes", {"model.base": {"kind": "preset", "name": "gpt-5"}}, "stages.0.changes"),
        ("stages.0.changes", {"data.mixture.math": 2}, "stages.0.changes"),
        ("stages.0.changes", {"data.sources.2.weight": 2}, "stages.0.changes"),
        ("axes.mixture", {"math": {"min": 0.5}}, "axes.mixture.general"),
        ("axes.mixture", {"math": {}, "general": {}, "code": {}}, "axes.mixture.code"),
        ("axes.mixture", {"math": {"min": 0.6}, "general": {"min": 0.6}}, "axes.mixture"),
        ("axes.mixture", {"math": {"max": 0.3}, "general": {"max": 0.6}}, "axes.mixture"),
        ("axes.mixture", {"math": {"min": 0.6, "max": 0.5}, "general": {}}, "axes.mixture.math.min"),
        ("axes.fields", [LEARNING_RATE | {"low": 0}], "axes.fields.0.low"),
        ("axes.fields", [LEARNING_RATE | {"low": 1}], "axes.fields.0.low"),
        ("axes.fields", [LEARNING_RATE | {"path": "train.rate"}], "axes.fields.0"),
        ("axes.fields", [{"kind": "choice", "path": "train.precision", "values": ["fp32", "fp64"]}], "axes.fields.0"),
        ("axes.fields", [{"kind": "choice", "path": "train.precision", "values": ["fp32"]}], "axes.fields.0.values"),
        ("axes.fields", [{"path": "seed", "values": [1, 2]}], "axes.fields.0"),
        ("axes.fields", [{"kind": "choice", "path": "seed", "values": [1, 2]}], "axes.fields.0"),
        ("axes.fields", [{"kind": "choice", "path": "train.epochs", "values": [1, 2]}], "axes.fields.0"),
        (
            "axes.fields",
            [{"kind": "choice", "path": "train.precision", "values": ["fp32"] * 2}],
            "axes.fields.0.values.1",
        ),
        ("axes.fields", [{"kind": "range", "path": "data.sequence_length", "low": 64, "high": 128}], "axes.fields.0"),
        ("axes.fields", [LEARNING_RATE, LEARNING_RATE | {"high": 1}], "axes.fields.1.path"),
        (
            "axes.fields",
            [{"kind": "choice", "path": "model.tokenizer.vocab_size", "values": [300, 400]}],
            "axes.fields.0.path",
        ),
        (
            "axes.fields",
            [{"kind": "choice", "path": "data.held_out_fraction", "values": [0.1, 0.2]}],
            "axes.fields.0.path",
        ),
        ("stages.0.changes", {"train": {"learning_rate": 1e-3}}, "stages.0.changes"),
        ("stages.0.changes", {"evaluate.every_steps": 3}, "stages.0.changes"),
        ("stages", [{"name": "a"}], "stages.0.max_steps"),
        ("stages.0.max_tokens", 400, "stages.0.max_steps"),
        ("base.data.sources.1.hold_out", True, "axes.mixture.general"),
        ("base.data.leave_out", ["rhymes"], "axes.mixture.general"),
        ("objective.metrics", [], "objective.metrics"),
        ("objective.metrics", [{"name": "held_out_loss.code"}], "objective.metrics.0.name"),
        ("objective.metrics", [{"name": "mmlu.accuracy"}], "objective.metrics.0.name"),
        ("objective.metrics", [{"name": "gsm8k"}], "objective.metrics.0.name"),
        ("objective.metrics", [{"name": "held_out_loss"}] * 2, "objective.metrics.1.name"),
        ("objective.metrics", [{"name": "gsm8k.pass@1"}], "objective.metrics.0.name"),
        ("objective.metrics", [{"name": "held_out_loss", "weight": 0}], "objective.metrics.0.weight"),
        ("objective.constraints", [{"metric": "held_out_loss.code"}], "objective.constraints.0.metric"),
        ("base.data.held_out_fraction", 0, "base.data.held_out_fraction"),
        ("base.train.epochs", 0, "base.train.epochs"),
        ("early_stop", {"reduction": 1}, "early_stop.reduction"),
        ("searcher", "luck", "searcher"),
    ],
)
def test_a_bad_value_is_named_by_its_path(sweep_document: dict[str, Any], path: str, value: Any, field: str) -> None:
    set_at(sweep_document, path, value)
    with pytest.raises(ValidationError) as caught:
        SweepSpec.model_validate(sweep_document)
    assert [error.field for error in field_errors(caught.value.errors(), sweep_document)] == [field]


def test_leaving_a_source_out_needs_others_in_the_mix(sweep_document: dict[str, Any]) -> None:
    sweep_document |= {"searcher": "leave_one_out", "stages": sweep_document["stages"][:1]}
    SweepSpec.model_validate(sweep_document)
    data = sweep_document["base"]["data"]
    data["mixture"] = {"math": 1, "general": 0}
    [only] = [source["name"] for source in data["sources"] if source["category"] == "math"]
    with pytest.raises(ValidationError, match=f"without source '{only}' nothing of the base mix would be left"):
        SweepSpec.model_validate(sweep_document)


def test_an_axis_is_no_stages_to_change(sweep_document: dict[str, Any]) -> None:
    sweep_document |= {"axes": {"fields": [LEARNING_RATE]}}
    sweep_document["stages"][0]["changes"] = {"train.learning_rate": 1e-4}
    with pytest.raises(ValidationError, match="is an axis"):
        SweepSpec.model_validate(sweep_document)


def test_an_axis_must_fit_what_its_stages_and_the_other_axes_set(sweep_document: dict[str, Any]) -> None:
    rows = {"kind": "choice", "path": "train.global_batch_rows", "values": [4, 6]}
    sweep_document["axes"] = {"fields": [rows]}
    sweep_document["base"]["train"]["global_batch_rows"] = 4
    SweepSpec.model_validate(sweep_document)
    sweep_document["stages"].append({"name": "wide", "max_steps": 4, "changes": {"parallel.num_workers": 4}})
    with pytest.raises(ValidationError, match=r"in stage .wide.: train\.global_batch_rows: is no multiple") as caught:
        SweepSpec.model_validate(sweep_document)
    assert field_errors(caught.value.errors(), sweep_document)[0].field == "axes.fields.0"
    sweep_document["stages"] = sweep_document["stages"][:1]
    sweep_document["axes"]["fields"].append({"kind": "choice", "path": "train.micro_batch_rows", "values": [1, 2]})
    sweep_document["base"]["parallel"] |= {"num_workers": 2, "expert_parallel_size": 1}
    with pytest.raises(ValidationError, match="is no multiple") as caught:
        SweepSpec.model_validate(sweep_document)
    assert field_errors(caught.value.errors(), sweep_document)[0].field == "axes.fields"


def test_what_decides_the_losses_may_be_an_axis_where_only_scores_count(sweep_document: dict[str, Any]) -> None:
    sweep_document["axes"] = {"fields": [{"kind": "choice", "path": "data.held_out_fraction", "values": [0.1, 0.2]}]}
    sweep_document["objective"] = {"metrics": [{"name": "gsm8k.exact_match"}]}
    SweepSpec.model_validate(sweep_document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages.0.rounds", 2),
        ("stages.0.candidates", 2),
        ("stages.0.changes", {"data.leave_out": ["rhymes"]}),
        ("axes", {"fields": [LEARNING_RATE]}),
    ],
)
def test_leaving_a_source_out_tries_nothing_else(sweep_document: dict[str, Any], path: str, value: Any) -> None:
    sweep_document["searcher"] = "leave_one_out"
    SweepSpec.model_validate(sweep_document)
    set_at(sweep_document, path, value)
    with pytest.raises(ValidationError) as caught:
        SweepSpec.model_validate(sweep_document)
    assert [error.field for error in field_errors(caught.value.errors(), sweep_document)] == [path]


def test_a_budget_of_tokens_is_filled_up_to_whole_steps(sweep_document: dict[str, Any]) -> None:
    sweep_document["stages"] = [{"name": "proxy", "max_tokens": 1000}]
    spec = SweepSpec.model_validate(sweep_document)
    for rows, length, steps in ((2, 64, 8), (4, 64, 4), (4, 128, 2)):
        job = changed(spec.base, {"train.global_batch_rows": rows, "data.sequence_length": length})
        assert spec.stages[0].num_steps(job) == steps, (rows, length)


def test_all_trials_that_a_sweep_may_run_are_counted(sweep_document: dict[str, Any]) -> None:
    stages = [{"name": "a", "max_steps": 4, "candidates": 6, "rounds": 3}, {"name": "b", "max_steps": 4, "seeds": 2}]
    spec = SweepSpec.model_validate(sweep_document | {"stages": stages})
    assert [spec.least_trials(number) for number in (0, 1)] == [3 + 5, 3 + 3 * 2]
    assert [spec.most_trials(number) for number in (0, 1)] == [3 + 5 + 2 * 6, 3 + 2 * 3 * 2]
    capped = SweepSpec.model_validate(sweep_document | {"stages": stages, "max_trials": 18})
    assert [capped.most_trials(number) for number in (0, 1)] == [18, 15]
    every = SweepSpec.model_validate(sweep_document | {"searcher": "leave_one_out"})
    assert (every.least_trials(0), every.most_trials(0)) == (3 + 1, 3 + 2)


def test_changes_that_need_each_other_are_made_together(sweep_document: dict[str, Any]) -> None:
    sweep_document["stages"][0]["changes"] = {"parallel.num_workers": 1, "parallel.expert_parallel_size": 1}
    spec = SweepSpec.model_validate(sweep_document)
    assert changed(spec.base, spec.stages[0].changes).parallel.num_workers == 1
    source = changed(spec.base, {"data.sources.1.weight": 3.0}).data.sources[1]
    assert source.weight == 3


def test_shares_of_the_base_mix_sum_to_one(sweep_document: dict[str, Any]) -> None:
    assert mixture_of_base(SweepSpec.model_validate(sweep_document).base) is None
    sweep_document["base"]["data"]["mixture"] = {"math": 3, "general": 1}
    assert mixture_of_base(SweepSpec.model_validate(sweep_document).base) == {"general": 0.25, "math": 0.75}
