"""What `/metrics` tells of the control plane: runs, queue, reconciler, cluster, webhooks, store and disks.

Jobs, queue and outbox are read from the store when asked, so a restart forgets nothing, and every replica tells the
same. What the reconciler and the sender of webhooks did is counted in this process.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.api.dependencies import ControlPlane
from service.api.job_metrics import job_families
from service.errors import Fault
from service.look_record import LookRecord
from service.spec.resources import RunKind
from service.store.counts import OutboxCount, QueueCount
from service.webhooks.sender import Outcome

Samples = dict[tuple[str, ...], float]
"""Values by their labels'."""


class ControlPlaneCollector(Collector):
    """Reads the store and the reconciler when Prometheus asks.

    Args:
        parts: of the control plane.
    """

    def __init__(self, parts: ControlPlane) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        """All but the requests."""
        parts, store = self._parts, self._parts.store
        start = time.perf_counter()
        store.ping()
        ping_s = time.perf_counter() - start
        yield _gauge("info", "The version", {(version("sleddog"),): 1}, "version")
        runs: Samples = {(item.kind, item.status): item.num_runs for item in store.counts()}
        yield _gauge("runs", "Jobs and sweeps by status", runs, "kind", "status")
        yield from _queue(store.queues())
        yield from _reconciler(parts.reconciler.record)
        yield from _outbox(store.outbox(), parts.webhook_sender.num_tries)
        yield _gauge("followers", "Open streams of events", {(): parts.event_feed.num_followers})
        yield _gauge("store_ping_seconds", "What a transaction that reads nothing took just now", {(): ping_s})
        yield _gauge("store_bytes", "Size of the database", {(): store.size_bytes()})
        yield from _disks(store.path, parts.runs_url)
        yield from job_families(store.running_jobs())


def _gauge(name: str, text: str, samples: Samples, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"sleddog_{name}", text, labels=labels), samples)


def _counter(name: str, text: str, samples: Samples, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"sleddog_{name}", text, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
    for label_values, value in samples.items():
        family.add_metric(label_values, value)
    return family


def _queue(queues: list[QueueCount]) -> Iterable[Metric]:
    now = datetime.now(UTC)
    lengths: Samples = {(item.project,): item.num_runs for item in queues}
    waits: Samples = {(item.project,): (now - item.since).total_seconds() for item in queues}
    yield _gauge("queue_length", "Jobs and sweeps that wait", lengths, "project")
    yield _gauge("queue_oldest_wait_seconds", "How long the first of them has, since it last ran", waits, "project")


def _reconciler(record: LookRecord) -> Iterable[Metric]:
    lag_s = time.monotonic() - record.finished_at
    yield _gauge("reconcile_lag_seconds", "Since the last look at all jobs ended", {(): lag_s})
    yield _gauge("reconcile_seconds", "The last look at all jobs took", {(): record.duration_s})
    yield _counter("reconcile_looks", "Looks at all jobs", {(): record.num_looks})
    yield _counter("reconcile_failures", "Looks that failed", {(): record.num_failures})
    is_up: Samples = {} if record.is_cluster_up is None else {(): float(record.is_cluster_up)}
    yield _gauge("ray_up", "Whether Ray answered when it was last asked for its drivers", is_up)
    yield _counter("events_ingested", "Taken in from run directories", {(): record.num_events})
    failures: Samples = {(): record.num_intake_failures}
    yield _counter("ingest_failures", "Run directories, or the store, that did not answer", failures)
    lost: Samples = {(kind,): record.lost_attempts[kind] for kind in get_args(RunKind)}
    yield _counter("attempts_lost", "Drivers followed by another, as the infrastructure failed", lost, "kind")
    pairs = [(kind, fault) for kind in get_args(RunKind) for fault in get_args(Fault)]
    failed: Samples = {pair: record.failed_runs[pair] for pair in pairs}
    yield _counter("runs_failed", "Jobs and sweeps that have failed, by who can mend it", failed, "kind", "fault")


def _outbox(outbox: OutboxCount, num_tries: Mapping[Outcome, int]) -> Iterable[Metric]:
    now = datetime.now(UTC)
    overdue_s = 0.0 if outbox.due_since is None else max((now - outbox.due_since).total_seconds(), 0.0)
    receivers: Samples = {(state,): number for state, number in outbox.num_receivers.items()}
    tries: Samples = {(outcome,): num_tries.get(outcome, 0) for outcome in get_args(Outcome) if outcome != "left"}
    yield _gauge("webhook_pending_messages", "That receivers have not taken yet", {(): outbox.num_pending})
    yield _gauge("webhook_overdue_seconds", "How long the first of them has been due", {(): overdue_s})
    yield _gauge("webhook_receivers", "Failing are those that did not take the last message", receivers, "state")
    yield _counter("webhook_tries", "Messages sent, by what became of it", tries, "outcome")


def _disks(store: Path | None, runs_url: str) -> Iterable[Metric]:
    """Of what lies on this machine: a database's server and an object store have their own."""
    filesystem, runs = url_to_fs(runs_url)
    paths = {"store": store, "runs": Path(runs) if isinstance(filesystem, LocalFileSystem) else None}
    usage = {(of,): shutil.disk_usage(_existing(path)) for of, path in paths.items() if path is not None}
    free: Samples = {labels: found.free for labels, found in usage.items()}
    size: Samples = {labels: found.total for labels, found in usage.items()}
    yield _gauge("disk_free_bytes", "Of the file system that it lies on", free, "of")
    yield _gauge("disk_bytes", "Size of the file system that it lies on", size, "of")


def _existing(path: Path) -> Path:
    return next(found for found in (path, *path.absolute().parents) if found.exists())
