"""The health of the routers, as a block of a finished job's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from service.client.tables import titled_table


def routing_block(summaries: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """How held-out tokens were routed before and after training.

    Args:
        summaries: a report's `routing`.
    """
    found = {summary["when"]: summary for summary in summaries}
    if "before" not in found or "after" not in found or not found["after"]["categories"]:
        return []
    before, after = found["before"], found["after"]
    table = titled_table(
        f"\nRouting of held-out tokens to {after['num_experts']} experts, means of the layers",
        "category",
        "in even use",
        "busiest / mean",
        "unused",
        "load drift",
        "same experts",
    )
    for category, now in after["categories"].items():
        then = before["categories"][category]
        table.add_row(
            escape(category),
            *(
                f"{then[name]:.{digits}f} → {now[name]:.{digits}f}"
                for name, digits in (("effective_experts", 1), ("max_over_mean", 2), ("unused_experts", 1))
            ),
            *("-" if now[name] is None else f"{now[name]:.1%}" for name in ("load_drift", "same_experts")),
        )
    return [table, *_specialised(after), f"  all figures: {escape(after['path'])}"]


def _specialised(summary: dict[str, Any]) -> list[str]:
    """The layers whose experts tell most of the category; the expert that does, its share of copies and its lift."""
    if not summary["most_specialised"]:
        return []
    by_chance = summary["specialisation_by_chance"]
    return [
        f"  most specialised layers (0 to 1; by chance {by_chance:.3f}), and the experts of their own",
        *map(_layer, summary["most_specialised"]),
    ]


def _layer(line: dict[str, Any]) -> str:
    firsts = [(category, experts[0]) for category, experts in line["experts"].items() if experts]
    told = [f"{escape(name)} {top['expert']} ({top['share']:.0%}, lift {top['lift']:.1f})" for name, top in firsts]
    return f"    layer {line['layer']}: {line['specialisation']:.3f}  {'; '.join(told)}"
