"""What the freeze advisor found, as tables for a terminal 100 columns wide."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from service.client.freeze_advice import ALL, FreezeAdvice, TuningAdvice


def print_advice(advice: FreezeAdvice, console: Console) -> None:
    """Print it."""
    parts: list[RenderableType] = [
        _costs(advice.modes),
        _losses(advice.modes),
        *(escape(f"{one.result.tuning}: {one.reason}") for one in advice.modes[1:]),
        f"For ablations over data mixes: [bold]{advice.recommended}[/bold]; {escape(advice.reason)}",
    ]
    console.print(Group(*parts), highlight=False, soft_wrap=True)


def _costs(modes: list[TuningAdvice]) -> Table:
    table = Table("tuning")
    for name in ("trained", "peak GB", "s a step", "tokens/s", "gain", "share", "worker s per nat"):
        table.add_column(name, justify="right")
    for one in modes:
        result = one.result
        table.add_row(
            result.tuning,
            f"{result.num_trained_params:,}",
            f"{result.peak_memory_bytes / 1e9:.2f}",
            f"{result.step_s:.2f}",
            f"{result.tokens_per_s:,.0f}",
            f"{one.gain:.3f}",
            _share(one.share_of_gain),
            "-" if one.worker_seconds_per_nat is None else f"{one.worker_seconds_per_nat:,.0f}",
        )
    return table


def _losses(modes: list[TuningAdvice]) -> Table:
    table = Table("held-out loss")
    table.add_column("before", justify="right")
    for one in modes:
        table.add_column(f"after {one.result.tuning}", justify="right")
    full = modes[0].result
    for category, before in full.before.items():
        cells = [_loss(one, category) for one in modes]
        table.add_row(escape(category), f"{before:.3f}", *cells)
    return table


def _loss(one: TuningAdvice, category: str) -> str:
    loss = f"{one.result.after[category]:.3f}"
    if one.result.tuning == "full":
        return loss
    share = one.share_of_gain if category == ALL else one.shares_by_category[category]
    return f"{loss} ({_share(share)})"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
