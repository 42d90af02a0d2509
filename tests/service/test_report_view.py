"""The report's tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from service.client.report_view import _mixture, _sources

COUNTS = {"rows_read": 9, "rows_rejected": 0, "exact_duplicates": 1, "near_duplicates": 2, "rows_kept": 6}


def shown(table: Any) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_rare_reasons_have_a_column_where_they_occur() -> None:
    plain = {"name": "a", "category": "code", **COUNTS, "rows_contaminated": 0, "rows_over_cap": 0}
    assert "over cap" not in shown(_sources({"sources": [plain]}))
    text = shown(_sources({"sources": [plain, plain | {"name": "b", "rows_over_cap": 1234}]}))
    assert "over cap" in text
    assert "contaminated" not in text
    assert "1,234" in text


def test_the_mix_tells_what_was_asked_and_what_stopped_each_category() -> None:
    line = {"category": "code", "asked_fraction": 0.5, "fraction": 0.25, "stopped_by": "cap", "available": 4000}
    counts = {"examples": 1000, "tokens": 77_000, "trained_tokens": 5}
    text = shown(_mixture({"mixture_by": "examples", "mixture": [line | counts]}))
    for part in ("by examples", "50.0%", "25.0%", "4,000", "1,000", "77,000", "its cap"):
        assert part in text
