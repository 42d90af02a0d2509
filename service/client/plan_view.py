"""A plan, as tables for a terminal 100 columns wide."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table

from service.spec.plan import CollectivePlan, Plan, PlannedChange


def print_plan(plan: Plan, console: Console) -> None:
    """Print it."""
    parts: list[RenderableType] = [
        f"{plan.num_params / 1e9:,.2f}B parameters, {plan.num_active_params / 1e9:,.2f}B active, "
        f"on {plan.gpus} GPUs in {plan.nodes} nodes",
        f"Memory of a GPU, {_gb(plan.memory.available)} GB: {'fits' if plan.fits else 'does NOT fit'}",
        _memory(plan),
        *([] if plan.fits else _changes(plan.changes)),
        *([_communication(plan.communication)] if plan.communication else []),
        _step(plan),
        _run(plan),
    ]
    console.print(Group(*parts), highlight=False)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f}"


def _memory(plan: Plan) -> Table:
    table = Table("part")
    table.add_column("GB", justify="right")
    for name, num_bytes in plan.memory.model_dump(exclude={"available"}).items():
        table.add_row(name.replace("_", " "), _gb(num_bytes))
    return table


def _changes(changes: list[PlannedChange]) -> list[RenderableType]:
    if not changes:
        return ["No change of one field needs less: take GPUs with more memory, or a smaller model."]
    table = Table("what to change")
    table.add_column("GB", justify="right")
    table.add_column("fits")
    for change in changes:
        fields = ", ".join(f"{name}: {str(value).lower()}" for name, value in change.fields.items())
        table.add_row(fields, _gb(change.total_bytes), "yes" if change.fits else "no")
    return [table]


def _communication(collectives: list[CollectivePlan]) -> Table:
    table = Table("communication of a step")
    for name in ("GPUs", "calls", "NVLink GB", "network GB", "s"):
        table.add_column(name, justify="right")
    for one in collectives:
        nvlink, network = _gb(one.nvlink_bytes), _gb(one.network_bytes)
        purpose = f"{one.kind.replace('_', '-')}: {one.purpose}"
        table.add_row(purpose, str(one.group_size), str(one.calls), nvlink, network, f"{one.seconds:.3f}")
    return table


def _step(plan: Plan) -> Table:
    step, table = plan.step, Table("time of a step")
    table.add_column("s", justify="right")
    for name, seconds in step.compute.model_dump().items():
        table.add_row(name.removesuffix("_s").replace("_", " "), f"{seconds:.3f}")
    table.add_row("communication", f"{step.communication_s:.3f}", end_section=True)
    hidden = plan.assumptions.hidden_communication
    table.add_row(f"step, {hidden:.0%} of the communication hidden", f"{step.step_s:.3f}")
    table.add_row("step, all hidden that can be", f"{step.shortest_step_s:.3f}")
    return table


def _run(plan: Plan) -> str:
    step, run, data = plan.step, plan.run, plan.data
    utilisation = f"{step.model_flops_utilisation:.1%} of the peak"
    lines = [f"{step.tokens_per_s:,.0f} tokens/s, {step.tokens:,} tokens a step, {utilisation}"]
    if run is None:
        lines.append("Give the tokens of an epoch (--tokens) to know how long it takes.")
    else:
        rows = "" if run.rows is None else f"{run.rows:,} rows an epoch, "
        cost = "" if run.cost is None else f", cost {run.cost:,.2f}"
        lines.append(f"{rows}{run.steps:,} steps, {run.hours:,.2f} hours, {run.gpu_hours:,.1f} GPU hours{cost}")
    packed = "" if data.packed_bytes is None else f"packed rows {_gb(data.packed_bytes)} GB before compression, "
    written = "" if data.checkpoints is None else f", {data.checkpoints} times"
    lines.append(
        f"Data: {packed}a checkpoint {_gb(data.checkpoint_bytes)} GB{written}, at most {_gb(data.kept_bytes)} GB kept"
    )
    return "\n".join(lines)
