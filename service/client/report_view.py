"""A finished job's report, as tables for a terminal 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from service.client.routing_view import routing_block
from service.client.tables import titled_table

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 60
_ANSWER_CHARS = 240
_SKIPPED_SHOWN = 5
_WARNINGS_SHOWN = 5
_COUNT_TITLES = {
    "rows_read": "rows",
    "further_threads": "more threads",
    "rows_rejected": "malformed",
    "rows_filtered": "filtered",
    "rows_contaminated": "contaminated",
    "rows_over_cap": "over cap",
    "exact_duplicates": "exact dup.",
    "near_duplicates": "near dup.",
    "rows_kept": "kept",
}
_FIT_TITLES = {
    "truncated": "truncated",
    "split": "split",
    "pieces": "into pieces",
    "exchanges_too_long": "exch. too long",
    "too_long": "dropped",
    "no_trained_token": "train nothing",
}
_RARE_COUNTS = ("further_threads", "rows_filtered", "rows_contaminated", "rows_over_cap")
"""Columns for those whom they concern."""


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print it."""
    print_data(report["data"], console)
    parts: list[RenderableType] = [
        _training(report["train"], report["model"]),
        *_measurements(report["train"]),
        *_warnings(report["train"]["warnings"]),
        *_proofs(report["proofs"]),
        _balance(report["train"]),
        _held_out(report["held_out"], report["data"]),
        *routing_block(report.get("routing", [])),
        *_evaluation(report.get("evaluation", [])),
        *(_sample(sample) for sample in report["samples"]),
        _outcome(report),
    ]
    console.print(Group(*parts))


def print_data(data: dict[str, Any], console: Console) -> None:
    """Print what a manifest of prepared data tells."""
    parts: list[RenderableType] = [
        _sources(data),
        *_skipped_rows(data),
        *_fit(data),
        *_unfit_rows(data),
        _mixture(data),
        _taken_of_sources(data),
        _packing(data["packing"]),
    ]
    console.print(Group(*parts))


def sparkline(values: Sequence[float], width: int = _CURVE_WIDTH) -> str:
    """A curve in one line of text, from its smallest value to its largest."""
    if not values:
        return ""
    picked = [values[position * len(values) // width] for position in range(width)] if len(values) > width else values
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in picked)


def _sources(data: dict[str, Any]) -> Table:
    counts = [
        name for name in _COUNT_TITLES if name not in _RARE_COUNTS or any(source[name] for source in data["sources"])
    ]
    table = titled_table("\nWhat came in", "source", "category", *(_COUNT_TITLES[name] for name in counts))
    for source in data["sources"]:
        table.add_row(source["name"], source["category"], *(f"{source[count]:,}" for count in counts))
    return table


def _skipped_rows(data: dict[str, Any]) -> list[str]:
    if not data["rejected_rows"]:
        return []
    lines = [
        escape(f"  {row['file']} row {row['row']}: {row['reason']}") for row in data["rejected_rows"][:_SKIPPED_SHOWN]
    ]
    return ["\n[bold]Skipped rows[/bold]", *lines, escape(f"  all of them: {data['rejected_rows_url']}")]


def _fit(data: dict[str, Any]) -> list[Table]:
    """What became of conversations that no row takes as they are, where there are such."""
    lines = [line for line in data["fit"] if any(line[name] for name in _FIT_TITLES)]
    if not lines:
        return []
    table = titled_table("\nWhat fits no row as it is", "source", *_FIT_TITLES.values())
    for line in lines:
        table.add_row(line["name"], *(f"{line[name]:,}" for name in _FIT_TITLES))
    return [table]


def _unfit_rows(data: dict[str, Any]) -> list[str]:
    """The first conversations of which nothing fits, and where all of them are."""
    if not data["unfit_rows"]:
        return []
    lines = [
        escape(f"  {row['file']} row {row['row']}: {row['reason'].replace('_', ' ')}, {row['tokens']:,} tokens")
        for row in data["unfit_rows"][:_SKIPPED_SHOWN]
    ]
    return ["\n[bold]Conversations left out[/bold]", *lines, escape(f"  all of them: {data['unfit_rows_url']}")]


def _mixture(data: dict[str, Any]) -> Table:
    title = f"\nThe mix, by {data['mixture_by']}"
    table = titled_table(
        title, "category", "asked", "share", "available", "examples", "tokens", "trained", "no more for"
    )
    for line in data["mixture"]:
        asked = "all" if line["asked_fraction"] is None else f"{line['asked_fraction']:.1%}"
        counts = (f"{line[name]:,}" for name in ("available", "examples", "tokens", "trained_tokens"))
        table.add_row(line["category"], asked, f"{line['fraction']:.1%}", *counts, f"its {line['stopped_by']}")
    return table


def _taken_of_sources(data: dict[str, Any]) -> Table:
    table = titled_table(
        "\nWhat the mix takes", "source", "available", "distinct", "examples", "tokens", "trained", "ratio"
    )
    for line in data["mixture_sources"]:
        counts = (f"{line[name]:,}" for name in ("available", "distinct", "examples", "tokens", "trained_tokens"))
        ratio = "" if line["trained_fraction"] is None else f"{line['trained_fraction']:.1%}"
        table.add_row(line["name"], *counts, ratio)
    return table


def _packing(packing: dict[str, Any]) -> str:
    return (
        f"\n[bold]Packing[/bold]  {packing['documents']:,} conversations in {packing['rows']:,} rows of "
        f"{packing['sequence_length']:,} tokens (least possible {packing['bound_rows']:,}): "
        f"fill {packing['fill']:.2%}, trainable tokens {packing['trained_fraction']:.1%}"
    )


def _training(train: dict[str, Any], model: dict[str, Any]) -> str:
    rates = [rate for _, rate in train["learning_rate_curve"]]
    losses = [loss for _, loss in train["loss_curve"]]
    return (
        f"\n[bold]Training[/bold]  {model['num_params']:,} parameters, {model['num_active_params']:,} active; "
        f"{train['steps']} steps over {train['epochs']:g} epochs, {train['tokens_per_s']:,.0f} tokens/s, "
        f"{train['restarts']} restarts\n"
        f"  learning rate  {sparkline(rates)}  {train['warmup_steps']} steps warm-up to "
        f"{train['learning_rate']:g}, then {train['schedule']}\n"
        f"  loss           {sparkline(losses)}  {losses[0]:.3f} → {losses[-1]:.3f}"
    )


def _measurements(train: dict[str, Any]) -> list[str]:
    """How well the processors were used, and by what."""
    share, seconds = train["model_flops_utilisation"], train["duration_s"]
    used = "" if share is None else f"MFU {share:.1%} of the peak, "
    phases = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {value / seconds:.0%}" for name, value in train["phases"].items()
    )
    lines = [
        f"  utilisation    {used}{_size(train['peak_memory_bytes'])} of memory at most",
        f"  step           {seconds / train['steps']:.3g} s: {phases}",
    ]
    if (saved := train["frozen_saving"]) is not None:
        share = f"{saved['flops_fraction']:.1%}"
        lines.append(f"  frozen parts   save {_size(saved['memory_bytes'])} a worker and {share} of the operations")
    if train["steps_skipped"]:
        lines.append(f"  skipped        {train['steps_skipped']} steps, whose gradient was not finite")
    return lines


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _warnings(warnings: list[dict[str, Any]]) -> list[str]:
    if not warnings:
        return []
    lines = [escape(f"  {warning['kind']}: {warning['message']}") for warning in warnings[:_WARNINGS_SHOWN]]
    more = [f"  and {len(warnings) - _WARNINGS_SHOWN} more"] if len(warnings) > _WARNINGS_SHOWN else []
    return [f"\n[bold]Warnings[/bold]  {len(warnings)}", *lines, *more]


def _proofs(starts: list[dict[str, Any]]) -> list[str]:
    """How many passed, and each that failed."""
    proofs = [proof for start in starts for proof in start["proofs"]]
    if not proofs:
        return []
    names = ", ".join(dict.fromkeys(proof["name"] for proof in proofs if proof["passed"]))
    failures = [
        f"  [red]failed[/red] {proof['name']}: {proof['measured']:.3g}, tolerance {proof['tolerance']:.3g}"
        for proof in proofs
        if not proof["passed"]
    ]
    return [f"\n[bold]Proofs[/bold]  {len(proofs) - len(failures)} passed: {names}", *failures]


def _balance(train: dict[str, Any]) -> str:
    layers = "  ".join(f"{value:.5f}" for value in train["balance_loss_per_layer"])
    floor = train["balance_loss_floor"]
    return (
        f"\n[bold]Balance loss[/bold]  per layer {layers}; sum {train['balance_loss']:.4f}, "
        f"at perfect balance {floor:.4f}"
    )


def _held_out(held_out: dict[str, dict[str, float]], data: dict[str, Any]) -> Table:
    table = titled_table("\nHeld-out loss, nats per token", "category", "examples", "before", "after", "change")
    examples = {line["category"]: line["examples"] for line in data["held_out"]}
    for category, before in held_out["before"].items():
        after = held_out["after"][category]
        change = f"{(after - before) / before:+.1%}"
        table.add_row(category, f"{examples[category]:,}", f"{before:.3f}", f"{after:.3f}", change)
    return table


def _evaluation(summaries: list[dict[str, Any]]) -> list[RenderableType]:
    """Each task's scores before and after training, and why a task failed."""
    if not summaries:
        return []
    table = titled_table("\nEvaluation, mean ± standard error", "task", "metric", "n", "before", "after")
    found = {(line["task"], line["when"]): line["metrics"] for line in summaries}
    for task in dict.fromkeys(line["task"] for line in summaries):
        before, after = (found.get((task, when), {}) for when in ("before", "after"))
        for name in after or before:
            n = (after or before)[name]["n"]
            table.add_row(escape(task), escape(name), f"{n:,}", _score(before.get(name)), _score(after.get(name)))
    failures = [
        f"{escape(line['task'])} {line['when']}: [red]failed[/red] {escape(line['reason'])}"
        for line in summaries
        if line["status"] == "failed"
    ]
    return [table, *failures]


def _score(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    error = metric["standard_error"]
    return f"{metric['score']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _sample(sample: dict[str, str]) -> str:
    before, after = (escape(" ".join(sample[when].split())[:_ANSWER_CHARS]) for when in ("before", "after"))
    return f"\n[bold]{escape(sample['prompt'])}[/bold]\n  [dim]before[/dim] {before}\n  [dim]after [/dim] {after}"


def _outcome(report: dict[str, Any]) -> str:
    stages = ", ".join(
        f"{stage['stage']} {stage['duration_s']:.1f} s{' (reused)' if stage['reused'] else ''}"
        for stage in report["stages"]
    )
    export = report["export"]
    return (
        f"\n[bold]Stages[/bold]  {stages}\n"
        f"[bold]Checkpoint[/bold]  {escape(export['path'])}\n  {export['bytes']:,} bytes in {export['files']} shards, "
        "read back bit-identical"
    )
