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
        ("objective.metrics", [], "objective.metrics"),
        ("objective.metrics", [{"name": "held_out_loss.code"}], "objective.metrics.0.name"),
        ("objective.metrics", [{"name": "mmlu.accuracy"}], "objective.metrics.0.name"),
        ("objective.metrics", [{"name": "gsm8k"}], "objective.metrics.0.name"),
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
