"""What steps measured, as curves and tables; and what the control plane tells Prometheus."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.cli import app
from service.client.client import AsyncClient, Client
from service.downsample import largest_triangles
from service.errors import BackendUnavailableError
from service.reconcile import Reconciler
from service.series import build_series
from service.spec.event import Event
from service.spec.job import JobSpec
from service.spec.resources import Job, StepMetrics
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend


@pytest.fixture
def job(store: Store, spec: JobSpec, reconciler: Reconciler, tmp_path: Path) -> Job:
    """A running one that has taken 2,000 steps, the 700th with a spike."""
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler.reconcile()
    reconciler.reconcile()
    events = []
    for step in range(1, 2001):
        loss = 90.0 if step == 700 else 9.0 - step / 500
        data = {
            "step": step,
            "total_steps": 4000,
            "loss": loss,
            "loss_by_category": {"math": loss},
            "tokens_per_s": 5.0,
        }
        events.append(Event(type="train.step", stage="train", data=data | {"balance_loss_per_layer": [0.1, 0.2]}))
    store.ingest_segment(job.id, "segment", events)
    return store.get(Job, job.id)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300), st.integers(2, 50))
def test_a_selection_is_of_measured_points_in_order_with_both_ends(values: list[float], max_points: int) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = largest_triangles(points, max_points)
    assert len(kept) == min(len(points), max_points)
    assert kept == sorted(set(kept) & set(points))
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_spike_survives_and_a_line_is_spread_evenly() -> None:
    line = [(float(step), 1.0) for step in range(1000)]
    spiked = [*line[:333], (333.0, 50.0), *line[334:]]
    assert (333.0, 50.0) in largest_triangles(spiked, 10)
    steps = [step for step, _ in largest_triangles(line, 11)]
    assert max(b - a for a, b in pairwise(steps)) <= 200


def test_every_number_of_a_step_is_a_curve_by_its_path() -> None:
    data = {
        "step": 1,
        "loss": None,
        "parts": {"a": 1, "b": [2.0, None]},
        "is_skipped": True,
        "word": "x",
        "bad": math.inf,
    }
    found = build_series([StepMetrics.model_construct(step=1, data=data)], [], 10)
    assert {(series.name, *series.values) for series in found} == {
        ("is_skipped", 1.0), ("parts.a", 1.0), ("parts.b.0", 2.0)
    }  # fmt: skip
    assert [series.name for series in build_series([StepMetrics(step=1, data=data)], ["parts.b"], 10)] == ["parts.b.0"]


def test_steps_and_curves_of_a_range(client: Client, http: TestClient, job: Job) -> None:
    handle = client.jobs.get(job.id)
    metrics = handle.metrics(from_step=1000, to_step=1003)
    assert [item.step for item in metrics] == [1000, 1001, 1002, 1003]
    assert len(handle.metrics()) == 2000
    table = metrics.to_pandas()
    assert list(table.index) == [1000, 1001, 1002, 1003]
    assert table.loc[1000, "loss"] == table.loc[1000, "loss_by_category.math"] == 7.0
    [loss] = handle.curves(["loss"], max_points=20)[:1]
    assert (loss.name, loss.num_points, len(loss.steps), loss.max) == ("loss", 2000, 20, 90.0)
    assert 700 in loss.steps
    curves = client.jobs.curves(job.id, from_step=1990, max_points=5)
    assert {curve.name for curve in curves} >= {"loss", "loss_by_category.math", "balance_loss_per_layer.1"}
    assert all(min(curve.steps) == 1990 for curve in curves)
    assert set(curves.to_pandas().columns) == {"name", "step", "value"}
    for query in ("max_points=1", "from_step=-1", "max_points=1000000"):
        assert http.get(f"/v1/jobs/{job.id}/metrics/series?{query}").status_code == 422


def test_a_table_needs_pandas_and_says_so(client: Client, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (client.jobs.metrics(job.id, to_step=3), client.jobs.curves(job.id, ["loss"])):
        with pytest.raises(ImportError, match="pip install pandas"):
            table.to_pandas()


def test_the_awaited_client_gets_the_same(url: str, key: str, client: Client, job: Job) -> None:
    async def ask() -> tuple[object, object]:
        async with AsyncClient(url, key) as awaited:
            return await awaited.jobs.metrics(job.id, from_step=1999), await awaited.jobs.curves(job.id, ["loss"])

    assert asyncio.run(ask()) == (client.jobs.metrics(job.id, from_step=1999), client.jobs.curves(job.id, ["loss"]))


@pytest.mark.usefixtures("apart")
def test_the_command_line_shows_curves(url: str, key: str, job: Job) -> None:
    access = ("--url", url, "--api-key", key)
    shown = CliRunner().invoke(app, ["metrics", job.id, "--name", "loss", *access]).output
    assert "loss_by_category" not in shown
    assert "2,000" in shown
    assert "90" in shown
    found = CliRunner().invoke(app, ["metrics", job.id, "--name", "loss", "--max-points", "3", "--json", *access])
    [curve] = json.loads(found.output)
    assert curve["steps"] == [1, 700, 2000]


def scrape(http: TestClient | httpx.Client, **headers: str) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, but those of buckets and creation times."""
    answer = http.get("/metrics", headers=headers)
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    samples = [sample for family in families for sample in family.samples]
    return {(item.name, *item.labels.values()): item.value for item in samples if "le" not in item.labels}


def test_prometheus_is_told_of_jobs_the_queue_requests_and_the_reconciler(
    http: TestClient,
    client: Client,
    spec: JobSpec,
    job: Job,
    reconciler: Reconciler,
    backend: RecordingBackend,
) -> None:
    client.jobs.create(spec)
    client.jobs.create(spec).cancel()
    http.get(f"/v1/jobs/{job.id}")
    http.get("/v1/jobs/job-0")
    http.get("/nowhere/at/all")
    told = scrape(http)
    assert told["sleddog_runs", "job", "running"] == 1
    assert told["sleddog_runs", "job", "cancelled"] == 1
    assert told["sleddog_queue_length",] == 1
    assert 0 < told["sleddog_queue_age_seconds",] < 60
    assert told["sleddog_job_step", job.id, "small"] == 2000
    assert told["sleddog_job_loss", job.id, "small"] == 5.0
    assert ("sleddog_job_model_flops_utilisation", job.id, "small") not in told, "what is not known is not told"
    assert told["sleddog_http_requests_total", "GET", "/v1/jobs/{job_id}", "200"] == 1
    assert told["sleddog_http_requests_total", "GET", "/v1/jobs/{job_id}", "404"] == 1
    assert told["sleddog_http_requests_total", "GET", "none", "404"] == 1
    assert told["sleddog_http_request_seconds_count", "GET", "/v1/jobs/{job_id}"] == 2
    looks, failures = told["sleddog_reconcile_looks_total",], told["sleddog_reconcile_failures_total",]
    backend.is_down = True
    with pytest.raises(BackendUnavailableError):
        backend.ping()
    reconciler.reconcile()
    told = scrape(http)
    assert told["sleddog_reconcile_looks_total",] == looks + 1
    assert told["sleddog_reconcile_failures_total",] == failures + 1
    assert told["sleddog_reconcile_lag_seconds",] < 60


def test_metrics_are_read_here_or_with_a_key_or_when_they_are_open(parts: ControlPlane, url: str, key: str) -> None:
    with httpx.Client(base_url=url) as here:
        assert here.get("/metrics").status_code == 200
        assert here.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 401
        assert here.get("/metrics", headers={"Via": "1.1 proxy"}).status_code == 401
        assert scrape(here, Via="1.1 proxy", Authorization=f"Bearer {key}")
    elsewhere = TestClient(create_app(parts), client=("203.0.113.7", 1))
    assert elsewhere.get("/metrics").status_code == 401
    opened = replace(parts, open_metrics=True)
    assert TestClient(create_app(opened), client=("203.0.113.7", 1)).get("/metrics").status_code == 200
