"""What to change in a job that does not fit its GPUs, tried out with the same arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from service.plan.layout import Layout
from service.plan.memory import plan_memory
from service.spec.job import JobSpec
from service.spec.plan import PlannedChange, PlanRequest

Fields = dict[str, int | bool | str]


def plan_changes(layout: Layout, request: PlanRequest) -> list[PlannedChange]:
    """Changes that need less memory: those that suffice, else each that helps.

    Args:
        layout: the job's, which does not fit.
        request: what was asked.
    """
    before, config = plan_memory(layout, request), layout.config
    tried = []
    for fields in _candidates(layout):
        memory = plan_memory(Layout(_changed(layout.spec, fields), config), request)
        if memory.total < before.total:
            change = PlannedChange(fields=fields, total_bytes=memory.total, fits=memory.total <= memory.available)
            tried.append(change)
    return _simplest([change for change in tried if change.fits]) or [one for one in tried if len(one.fields) == 1]


def _candidates(layout: Layout) -> Iterator[Fields]:
    """Changes of one field, then of several, the cheapest in time first."""
    train, parallel = layout.spec.train, layout.spec.parallel
    smaller: Fields = {"train.micro_batch_rows": 1} if train.micro_batch_rows > 1 else {}
    recomputed: Fields = {} if train.activation_checkpointing else {"train.activation_checkpointing": True}
    frozen: Fields = {"train.tuning": "frozen_moe"} if train.tuning == "full" else {}
    spread: list[Fields] = [
        {"parallel.expert_parallel_size": size}
        for size in range(parallel.expert_parallel_size + 1, layout.num_gpus + 1)
        if layout.num_gpus % size == 0 and layout.config.num_experts % size == 0
    ]
    more: list[Fields] = [
        {"parallel.num_workers": workers, "parallel.expert_parallel_size": size}
        for factor in (2, 4, 8)
        if train.global_batch_rows % ((workers := factor * layout.num_gpus) * train.micro_batch_rows) == 0
        for size in sorted({parallel.expert_parallel_size, min(workers, layout.config.num_experts)}, reverse=True)
        if workers % size == 0 and layout.config.num_experts % size == 0
    ]
    singles = [fields for fields in (smaller, recomputed) if fields]
    yield from singles
    yield from spread
    yield from more
    for fields in [{}, *spread, *more]:
        yield smaller | recomputed | fields
    if frozen:
        yield frozen
        yield smaller | recomputed | frozen


def _changed(spec: JobSpec, fields: Fields) -> JobSpec:
    train = {name.partition(".")[2]: value for name, value in fields.items() if name.startswith("train.")}
    parallel = {name.partition(".")[2]: value for name, value in fields.items() if name.startswith("parallel.")}
    return spec.model_copy(
        update={"train": spec.train.model_copy(update=train), "parallel": spec.parallel.model_copy(update=parallel)}
    )


def _simplest(changes: list[PlannedChange]) -> list[PlannedChange]:
    """Those that hold no other that suffices as well; last what changes the training itself."""
    kept: list[PlannedChange] = []
    for change in sorted(changes, key=lambda change: ("train.tuning" in change.fields, len(change.fields))):
        touched = set(change.fields)
        if not any(set(other.fields) <= touched for other in kept):
            kept.append(change)
    return kept
