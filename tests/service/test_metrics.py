"""What steps measured, as curves and tables; and what the control plane tells Prometheus."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import get_args

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pydantic import JsonValue
from sqlalchemy import update
from typer.testing import CliRunner

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.cli import app
from service.client.client import AsyncClient, Client
from service.downsample import largest_triangles
from service.errors import BackendUnavailableError
from service.reconcile import Reconciler
from service.series import build_series
from service.spec.event import Event, EventType, WarningKind
from service.spec.job import JobSpec
from service.spec.resources import Job, StepMetrics
from service.spec.webhook import WebhookSpec
from service.store.models import JobRow
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


def of_job(name: str, job: Job, **labels: str) -> tuple[str, ...]:
    """Of a running job's sample, as `scrape` gives it: values in the order of the labels' names."""
    found = {"job_id": job.id, "name": job.name, "project": job.project, **labels}
    return (f"sleddog_job_{name}", *(found[label] for label in sorted(found)))


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
    assert told["sleddog_queue_length", "default"] == 1
    assert 0 < told["sleddog_queue_oldest_wait_seconds", "default"] < 60
    labels = (job.id, "small", "default")
    assert told["sleddog_job_step", *labels] == 2000
    assert told["sleddog_job_loss", *labels] == 5.0
    assert ("sleddog_job_memory_bytes", *labels) not in told, "what is not known is not told"
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
    assert told["sleddog_ray_up",] == 0
    backend.is_down = False
    reconciler.reconcile()
    assert scrape(http)["sleddog_ray_up",] == 1


def test_what_a_running_job_measures_is_told_and_ends_with_it(
    store: Store, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend, http: TestClient, tmp_path: Path
) -> None:
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler.reconcile()
    reconciler.reconcile()
    labels = (job.id, "small", "default")
    assert scrape(http)[of_job("info", job, stage="start")] == 1
    begun = scrape(http)["sleddog_job_last_event_timestamp_seconds", *labels]
    manifest = {
        "accounting": [
            {"rows_in": 10, "made": 0, "rows_out": 7, "gone": {"rows_rejected": 1, "held_out": 2}},
            {"rows_in": 7, "made": 0, "rows_out": 4, "gone": {"held_out": 3}},
        ],
        "packing": {"fill": 0.5},
    }
    step = {"step": 1, "step_s": 2.0, "data_wait_s": 0.5, "dead_experts_per_layer": [0, 3], "loss": None}
    taken_at = datetime(2100, 1, 1, tzinfo=UTC)
    events = [
        Event(type="stage.finished", stage="prepare", data={"summary": manifest}),
        Event(type="train.step", stage="train", data=step | {"is_skipped": True, "gradient_norm": None}),
        Event(type="train.step", stage="train", data=step | {"is_skipped": False, "gradient_norm": 0.5}, time=taken_at),
        Event(type="job.warning", stage="train", data={"kind": "loss_spike"}),
        Event(type="eval.routing", stage="evaluate", data={"num_experts": 8}),
    ]
    events.append(Event(type="job.alive", time=taken_at + timedelta(hours=1)))
    store.ingest_segment(job.id, "segment", events)
    told = scrape(http)
    assert told["sleddog_job_rows_read", *labels] == 10
    assert told["sleddog_job_rows_kept", *labels] == 4
    assert told[of_job("rows_dropped", job, reason="held_out")] == 5
    assert told["sleddog_job_packing_fill_ratio", *labels] == 0.5
    assert told["sleddog_job_step_seconds", *labels] == 2.0
    assert told[of_job("step_phase_seconds", job, phase="data_wait")] == 0.5
    assert told[of_job("layer_dead_experts", job, layer="1")] == 3
    assert told["sleddog_job_skipped_steps_total", *labels] == 1
    assert told["sleddog_job_gradient_norm", *labels] == 0.5
    warned = {kind: told[of_job("warnings_total", job, kind=kind)] for kind in get_args(WarningKind)}
    assert warned == dict.fromkeys(warned, 0) | {"loss_spike": 1}, "all are told, so that a first one is an increase"
    assert told["sleddog_job_experts", *labels] == 8
    assert ("sleddog_job_loss", *labels) not in told
    heard_at = told["sleddog_job_last_event_timestamp_seconds", *labels]
    assert heard_at == taken_at.timestamp() > begun, "to live is no work"
    assert sum(job.id in sample for sample in told) <= 60 + 3 * 2
    backend.states[f"{job.id}-a1"] = ("succeeded", "")
    store.change_status(store.get(Job, job.id), "succeeded")
    assert not any(job.id in sample for sample in scrape(http)), "a job that has ended has no series"


@pytest.mark.parametrize(
    ("type", "stage", "data"),
    [
        ("stage.finished", "prepare", {"summary": {"accounting": [{"stage": "read"}]}}),
        ("stage.finished", "prepare", {"summary": "none"}),
        ("train.step", "train", {"gradient_norm": "high", "dead_experts_per_layer": "none", "step_s": [1]}),
        ("train.step", "train", {"router_entropy_per_layer": ["high", None, 1.5]}),
        ("stage.progress", "prepare", {"done": "1", "total": "4"}),
    ],
)
def test_what_an_event_says_amiss_spoils_neither_events_nor_metrics(
    store: Store, job: Job, http: TestClient, type: EventType, stage: str, data: dict[str, JsonValue]
) -> None:
    store.ingest_segment(job.id, "amiss", [Event(type=type, stage=stage, data=data)])
    assert scrape(http)[of_job("attempt", job)] == 1


def test_a_slipped_end_is_counted(store: Store, job: Job, http: TestClient) -> None:
    slipped = of_job("warnings_total", job, kind="eta_slipped")
    for number, eta_s in enumerate((1000.0, 9000.0)):
        data = {"step": 3000 + number, "total_steps": 4000, "eta_s": eta_s}
        store.ingest_segment(job.id, f"eta-{number}", [Event(type="train.step", stage="train", data=data)])
    assert scrape(http)[slipped] == 1


def test_what_fails_is_counted_once_by_who_can_mend_it(
    store: Store, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend, http: TestClient, tmp_path: Path
) -> None:
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    reconciler.reconcile()
    reconciler.reconcile()
    told = scrape(http)
    assert told["sleddog_runs_failed_total", "infrastructure", "job"] == told["sleddog_attempts_lost_total", "job"] == 0
    for attempt in (1, 2, 3):
        backend.states[f"{job.id}-a{attempt}"] = ("failed", "gone")
        for _ in range(3):
            reconciler.reconcile()
    assert store.get(Job, job.id).status == "failed"
    told = scrape(http)
    assert told["sleddog_runs_failed_total", "infrastructure", "job"] == 1
    assert told["sleddog_runs_failed_total", "user", "job"] == 0
    assert told["sleddog_attempts_lost_total", "job"] == 2


def test_waits_are_by_project_and_begin_anew_when_a_job_gave_way(
    store: Store, spec: JobSpec, http: TestClient, tmp_path: Path
) -> None:
    store.create(Job, spec, str(tmp_path / "runs"))
    job, _ = store.create(Job, spec, str(tmp_path / "runs"))
    long_ago = datetime.now(UTC) - timedelta(hours=9)
    with store._transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(created_at=long_ago, project_id="research"))
    told = scrape(http)
    assert told["sleddog_queue_length", "default"] == told["sleddog_queue_length", "research"] == 1
    assert told["sleddog_queue_oldest_wait_seconds", "default"] < 60
    assert told["sleddog_queue_oldest_wait_seconds", "research"] == pytest.approx(9 * 3600, abs=60)
    with store._transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(charged_at=datetime.now(UTC)))
    assert scrape(http)["sleddog_queue_oldest_wait_seconds", "research"] < 60


def test_the_outbox_and_its_receivers_are_told(store: Store, parts: ControlPlane, http: TestClient) -> None:
    opened = replace(parts, allow_private_webhooks=True)
    webhook, _ = store.create_webhook(WebhookSpec(url="http://127.0.0.1:9/"))
    store.queue_test(webhook.id)
    told = scrape(http)
    assert told["sleddog_webhook_pending_messages",] == told["sleddog_webhook_receivers", "active"] == 1
    assert 0 < told["sleddog_webhook_overdue_seconds",] < 60
    opened.webhook_sender.send_due()
    told = scrape(TestClient(create_app(opened), client=("127.0.0.1", 1)))
    assert told["sleddog_webhook_receivers", "failing"] == told["sleddog_webhook_tries_total", "failed"] == 1
    assert told["sleddog_webhook_overdue_seconds",] == 0, "the next try is not due yet"
    store.disable_webhook(webhook.id, datetime.now(UTC), "gone")
    told = scrape(http)
    assert told["sleddog_webhook_pending_messages",] == told["sleddog_webhook_receivers", "failing"] == 0
    assert told["sleddog_webhook_receivers", "disabled"] == 1


def test_the_store_and_its_disk_are_told(store: Store, http: TestClient) -> None:
    told = scrape(http)
    assert told["sleddog_store_bytes",] > 10_000
    assert 0 < told["sleddog_store_ping_seconds",] < 60
    assert 0 < told["sleddog_disk_free_bytes", "runs"] <= told["sleddog_disk_bytes", "runs"]
    assert (("sleddog_disk_free_bytes", "store") in told) == store.is_embedded


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
