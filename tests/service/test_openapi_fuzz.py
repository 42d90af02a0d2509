"""Operations of the OpenAPI document, with what is valid and what is not: no 5xx, and no answer that is not in it.

`SLEDDOG_FUZZ_EXAMPLES` sets how often each is tried; by default few times, so that it takes under a minute.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.client.client import Client
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec
from tests.conftest import TRIED

EXAMPLES = int(os.environ.get("SLEDDOG_FUZZ_EXAMPLES", "10"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ENDLESS = "events:stream"
"""An answer that ends with the run; tests/service/test_streams.py follows it."""


@pytest.fixture
def known(client: Client, working: None, spec: JobSpec, sweep_spec: SweepSpec, tmp_path: Path) -> dict[str, list[str]]:
    """Ids of what there is, by the name of the path's parameter."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    jobs = [client.jobs.create(spec) for _ in range(3)]
    client.jobs.cancel(jobs[0].id)
    sweeps = [client.sweeps.create(sweep_spec) for _ in range(3)]
    client.sweeps.cancel(sweeps[0].id)
    uploaded = [client.datasets.upload(rows) for _ in range(3)]
    webhook = client.webhooks.create("https://93.184.216.34/told", events=["job.succeeded"])
    return {
        "job_id": [job.id for job in jobs],
        "other_id": [job.id for job in jobs],
        "sweep_id": [sweep.id for sweep in sweeps],
        "dataset_id": [dataset.id for dataset in uploaded],
        "webhook_id": [webhook.id],
        "trial_id": ["proxy-base-s0"],
        "path": ["spec.json", "../spec.json"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_no_operation_answers_what_is_not_documented(
    app: FastAPI, url: str, key: str, known: dict[str, list[str]], record_property: Callable[[str, object], None]
) -> None:
    document = app.openapi()
    for operation in (found for path in document["paths"].values() for found in path.values()):
        operation.pop("security", None)  # or many would be tried without a key
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    operations = [operation for operation in operations if ENDLESS not in operation.path]
    operations.sort(key=lambda operation: ("get", "post", "put", "patch", "delete").index(operation.method))
    failures: dict[str, str] = {}
    statuses: dict[int, int] = {}

    def try_one(case: Case, picks: list[int]) -> None:
        for pick, name in zip(picks, sorted(case.path_parameters), strict=False):
            if pick and name in known:
                case.path_parameters[name] = known[name][pick % len(known[name])]
        if case.query:
            case.query.pop("follow", None)
        answer = case.call(base_url=url, headers={"Authorization": f"Bearer {key}"})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        case.validate_response(answer, checks=CHECKS)

    for operation in operations:
        strategy = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
        tried = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )(given(strategy, st.lists(st.integers(0, 6), min_size=3, max_size=3))(try_one))
        try:
            tried()
        except (FailureGroup, BaseExceptionGroup) as error:
            failures[operation.label] = "\n".join(str(one) for one in error.exceptions)
    record_property(TRIED, f"{len(operations)} operations, answers by status: {dict(sorted(statuses.items()))}")
    assert not {401, 429} & set(statuses), "what is not let in tries nothing"
    assert sum(number for status, number in statuses.items() if status < 300) > 100
    assert not failures, "\n\n".join(f"{label}: {text}" for label, text in failures.items())
