"""What `/metrics` tells of each running job: how far it is, what its last step measured, what became of its rows.

Labels are `job_id`, `name` and `project`: Prometheus gives `job` to what it scrapes. Only jobs that run have series, at
most 60 each and three more for each layer of the model. What is not known is not told: a loss that is not finite is
missing, and counted as a skipped step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from service.spec.event import WarningKind
from service.store.counts import RunningJob

LABELS = ("job_id", "name", "project")
_PHASES = ("data_wait", "forward", "backward", "optimizer")

Telling = Iterator[tuple[tuple[str, ...], object]]
"""Values by further labels'; what is no number, as an event may say, is not told."""

_OF_PROGRESS = {
    "step": ("step", "Optimiser steps done"),
    "total_steps": ("steps_planned", "Optimiser steps in all"),
    "epoch": ("epoch", "Epochs done, as a fraction"),
    "loss": ("loss", "Nats per trained token, of the last step"),
    "learning_rate": ("learning_rate", "Of the last step"),
    "tokens_per_s": ("tokens_per_second", "Of the last step"),
    "memory_bytes": ("memory_bytes", "Most that any worker had in use, as of the last step"),
    "model_flops_utilisation": ("model_flops_utilisation_ratio", "Operations of the last step over the peak"),
    "balance_loss": ("balance_loss", "Sum over layers, of the last step"),
    "balance_loss_floor": ("balance_loss_floor", "The same at perfect balance"),
    "eta_s": ("eta_seconds", "Until the end of the task, in training until the last step"),
}
_OF_STEP = {
    "gradient_norm": ("gradient_norm", "L2, before clipping, of the last step"),
    "step_s": ("step_seconds", "Of the last step, data wait included"),
    "dropped_fraction": ("dropped_ratio", "Token copies that found no room, of the last step"),
}
_OF_LAYERS = {
    "load_max_over_mean": ("layer_load_max_over_mean", "Token copies of the busiest expert over the mean"),
    "dead_experts": ("layer_dead_experts", "Experts without any token in the last step"),
    "router_entropy": ("layer_router_entropy_nats", "Of the gates' distribution; the logarithm of experts when even"),
}
_OF_DATA = {
    "rows_read": ("rows_read", "Rows of the sources"),
    "rows_kept": ("rows_kept", "Rows that the mix takes, each once"),
    "packed_rows": ("packed_rows", "Rows that the training sees in an epoch"),
    "fill": ("packing_fill_ratio", "Tokens of the packed rows over their room"),
    "trained_fraction": ("trained_tokens_ratio", "Tokens of the packed rows that are trained"),
    "tokens": ("packed_tokens", "Tokens of the packed rows"),
}


def job_families(jobs: Sequence[RunningJob]) -> Iterable[Metric]:
    """The families of all running jobs.

    Args:
        jobs: that run.
    """

    def gauge(name: str, text: str, tell: Callable[[RunningJob], Telling], *labels: str) -> Metric:
        return _fill(GaugeMetricFamily(f"sleddog_job_{name}", text, labels=(*LABELS, *labels)), jobs, tell)

    def counter(name: str, text: str, tell: Callable[[RunningJob], Telling], *labels: str) -> Metric:
        return _fill(CounterMetricFamily(f"sleddog_job_{name}", text, labels=(*LABELS, *labels)), jobs, tell)

    yield gauge("info", "1, with the stage that it is in", _stage, "stage")
    yield gauge("attempt", "Times that its driver was started", lambda job: _one(job.attempt))
    yield gauge("started_timestamp_seconds", "When it first ran", lambda job: _one(job.started_at.timestamp()))
    yield gauge("last_event_timestamp_seconds", "When it last said more than that its driver lives", _heard_at)
    yield gauge("task_done_ratio", "How far the stage's task is", _task)
    for field, (name, text) in _OF_PROGRESS.items():
        yield gauge(name, text, _reading(field))
    for field, (name, text) in _OF_STEP.items():
        yield gauge(name, text, _reading(field, "telemetry", "step"))
    yield gauge("step_phase_seconds", "Of the last step, on worker 0", _phases, "phase")
    for field, (name, text) in _OF_LAYERS.items():
        yield gauge(name, text, _by_layer(field), "layer")
    yield gauge("experts", "Of a layer", _reading("num_experts", "telemetry"))
    for field, (name, text) in _OF_DATA.items():
        yield gauge(name, text, _reading(field, "telemetry", "data"))
    yield gauge("rows_dropped", "Rows that the mix does not take", _dropped, "reason")
    yield counter("gpu_seconds", "Used over all attempts; a worker counts as a GPU", lambda job: _one(job.gpu_seconds))
    yield counter("skipped_steps", "Steps whose gradient was not finite", _skipped)
    yield counter("warnings", "What it has warned of", _warnings, "kind")


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily, jobs: Sequence[RunningJob], tell: Callable[[RunningJob], Telling]
) -> Metric:
    for job in jobs:
        labels = (job.id, job.name, job.project)
        for further, value in tell(job):
            if isinstance(value, int | float):
                family.add_metric((*labels, *further), value)
    return family


def _one(value: object) -> Telling:
    yield (), value


def _at(job: RunningJob, *path: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = job.progress
    for name in path:
        found = found.get(name) or {}
    return found


def _reading(field: str, *path: str) -> Callable[[RunningJob], Telling]:
    return lambda job: _one(_at(job, *path).get(field))


def _by_layer(field: str) -> Callable[[RunningJob], Telling]:
    def tell(job: RunningJob) -> Telling:
        for layer, value in enumerate(_at(job, "telemetry", "layers").get(field, [])):
            yield (str(layer),), value

    return tell


def _stage(job: RunningJob) -> Telling:
    yield (job.progress.get("stage") or "start",), 1


def _heard_at(job: RunningJob) -> Telling:
    """Of one that has said nothing yet, when it began."""
    told = _at(job, "telemetry").get("last_event_at")
    yield (), (job.started_at if told is None else datetime.fromisoformat(told)).timestamp()


def _task(job: RunningJob) -> Telling:
    done, total = job.progress.get("done"), job.progress.get("total")
    if isinstance(done, int) and isinstance(total, int) and total:
        yield (), done / total


def _phases(job: RunningJob) -> Telling:
    step = _at(job, "telemetry", "step")
    for phase in _PHASES:
        yield (phase,), step.get(f"{phase}_s")


def _dropped(job: RunningJob) -> Telling:
    for reason, num_rows in _at(job, "telemetry", "data", "rows_dropped").items():
        yield (reason,), num_rows


def _skipped(job: RunningJob) -> Telling:
    yield (), _at(job, "telemetry").get("skipped_steps", 0)


def _warnings(job: RunningJob) -> Telling:
    told = _at(job, "telemetry", "warnings")
    for kind in get_args(WarningKind):  # each from the start, as 0: of one that begins with 1 no increase is seen
        yield (kind,), told.get(kind, 0)
