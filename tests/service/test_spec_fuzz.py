"""Ten thousand documents that are a little wrong: none is a crash, and what is refused is refused by its field."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.client.spec_file import load_spec, load_sweep
from service.spec.base import SpecModel, field_errors
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec
from tests.conftest import TRIED
from tests.service.mutations import mutated

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_DOCUMENTS = int(os.environ.get("SLEDDOG_FUZZ_SPECS", "10000"))
NUM_POSTED = NUM_DOCUMENTS // 20


def is_named(document: Any, field: str) -> bool:
    """Whether a path leads to something that is there, or that is missing from what is there.

    Keys may hold dots themselves.
    """
    if field == "":
        return True
    if isinstance(document, list):
        head, _, rest = field.partition(".")
        if not head.isdigit():
            return False
        return not rest or (int(head) < len(document) and is_named(document[int(head)], rest))
    if not isinstance(document, dict):
        return False
    inside = [key for key in document if field == key or field.startswith(f"{key}.")]
    return any(is_named(document[key], field[len(key) + 1 :]) for key in inside) or "." not in field


def faults_of(model: type[SpecModel], document: Any) -> list[str]:
    """Fields that are refused; anything but a refusal is raised."""
    try:
        model.model_validate(document)
    except ValidationError as error:
        return [fault.field for fault in field_errors(error.errors(), document)]
    return []


def test_every_fault_of_a_changed_spec_names_its_field(
    job_document: dict[str, Any], sweep_document: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    starts: list[tuple[type[SpecModel], dict[str, Any]]] = [(JobSpec, job_document), (SweepSpec, sweep_document)]
    starts += [
        (type(spec), spec.model_dump(mode="json"))
        for spec in (load_spec(EXAMPLES / "quickstart.yaml"), load_spec(EXAMPLES / "arctic.yaml"))
    ]
    starts.append((SweepSpec, load_sweep(EXAMPLES / "sweep.yaml").model_dump(mode="json")))
    counts: Counter[str] = Counter()
    for seed in range(NUM_DOCUMENTS):
        model, start = starts[seed % len(starts)]
        document = mutated(start, Random(seed))
        fields = faults_of(model, document)
        counts["refused" if fields else "accepted"] += 1
        for field in fields:
            assert field or "" in document, f"{seed}: {json.dumps(document)}"
            assert is_named(document, field), f"{seed}: {field} is not in {json.dumps(document)}"
    assert min(counts["refused"], counts["accepted"]) > NUM_DOCUMENTS / 20, counts
    record_property(TRIED, f"{NUM_DOCUMENTS} documents: {dict(counts)}")


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["job", "sweep"])
def test_whatever_is_posted_is_accepted_or_refused_by_its_field(
    http: TestClient, job_document: dict[str, Any], sweep_document: dict[str, Any], kind: str
) -> None:
    start = job_document if kind == "job" else sweep_document
    for seed in range(NUM_POSTED):
        document = mutated(start, Random(seed))
        answer = http.post(f"/v1/{kind}s", content=json.dumps(document), headers={"Content-Type": "application/json"})
        assert answer.status_code in (201, 422), f"{seed}: {answer.text} for {json.dumps(document)}"
        for error in answer.json()["errors"] if answer.status_code == 422 else ():
            assert is_named(document, error["field"]), f"{seed}: {error} for {json.dumps(document)}"
