"""The report's tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from service.client.report_view import (
    _evaluation,
    _fit,
    _measurements,
    _mixture,
    _proofs,
    _sources,
    _taken_of_sources,
    _unfit_rows,
    _warnings,
)
from service.client.routing_view import routing_block

COUNTS = {"rows_read": 9, "rows_rejected": 0, "exact_duplicates": 1, "near_duplicates": 2, "rows_kept": 6}


def shown(table: Any) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_rare_reasons_have_a_column_where_they_occur() -> None:
    plain = {"name": "a", "category": "code", **COUNTS, "rows_contaminated": 0, "rows_over_cap": 0}
    plain |= {"further_threads": 0, "rows_filtered": 0}
    assert "over cap" not in shown(_sources({"sources": [plain]}))
    text = shown(_sources({"sources": [plain, plain | {"name": "b", "rows_over_cap": 1234}]}))
    assert "over cap" in text
    assert "more threads" not in text
    assert "more threads" in shown(_sources({"sources": [plain | {"further_threads": 5}]}))
    assert "contaminated" not in text
    assert "1,234" in text


def test_the_mix_tells_what_was_asked_and_what_stopped_each_category() -> None:
    line = {"category": "code", "asked_fraction": 0.5, "fraction": 0.25, "stopped_by": "cap", "available": 4000}
    counts = {"examples": 1000, "tokens": 77_000, "trained_tokens": 5}
    text = shown(_mixture({"mixture_by": "examples", "mixture": [line | counts]}))
    for part in ("by examples", "50.0%", "25.0%", "4,000", "1,000", "77,000", "its cap"):
        assert part in text


def test_what_became_of_long_conversations_is_shown_where_there_were_any() -> None:
    names = ("whole", "truncated", "split", "too_long", "no_trained_token", "pieces", "exchanges_too_long")
    plain = {"name": "a", **dict.fromkeys(names, 0), "whole": 7}
    assert _fit({"fit": [plain]}) == []
    [table] = _fit({"fit": [plain, plain | {"name": "b", "split": 2, "pieces": 5, "no_trained_token": 1234}]})
    rows = shown(table).splitlines()
    assert [row.split()[0] for row in rows[4:]] == ["b"]
    assert rows[4].split()[1:] == ["│", *" │ ".join(("0", "2", "5", "0", "0", "1,234")).split()]


def test_the_trained_share_of_each_source_is_shown() -> None:
    counts = {"available": 9, "distinct": 8, "examples": 1000, "tokens": 4000, "trained_tokens": 1000}
    used = {"name": "a", **counts, "trained_fraction": 0.25}
    unused = {"name": "b", **dict.fromkeys(counts, 0), "trained_fraction": None}
    text = shown(_taken_of_sources({"mixture_sources": [used, unused]}))
    for part in ("1,000", "4,000", "25.0%"):
        assert part in text


def test_scores_stand_side_by_side_and_a_failure_says_why() -> None:
    line = {"task": "gsm8k", "kind": "gsm8k", "status": "succeeded", "reason": None}
    before, after = (
        {"exact_match": {"score": s, "standard_error": e, "n": 1319}} for s, e in ((0.1, 0.02), (0.5, None))
    )
    failed = {"task": "code", "when": "after", "status": "failed", "reason": "no bubblewrap [bwrap]", "metrics": {}}
    summaries = [line | {"when": "before", "metrics": before}, line | {"when": "after", "metrics": after}, failed]
    table, *failures = _evaluation(summaries)
    for part in ("exact_match", "1,319", "0.100 ± 0.020", "0.500"):
        assert part in shown(table)
    assert [shown(line).strip() for line in failures] == ["code after: failed no bubblewrap [bwrap]"]
    assert _evaluation([]) == []


def summary_of_routing(when: str, **figures: float | None) -> dict[str, Any]:
    figures = {"effective_experts": 7.04, "max_over_mean": 1.5, "unused_experts": 0.25} | figures
    line = {"copies": 9, "load_drift": None, "same_experts": None, **figures}
    tops = {"math": [{"expert": 3, "share": 0.45, "lift": 1.8}, {"expert": 1, "share": 0.2, "lift": 1.1}], "c[a]": []}
    return {
        "when": when,
        "path": f"evals/{when}-routing.json",
        "num_experts": 8,
        "categories": {"math": line, "c[a]": line},
        "specialisation_by_chance": 0.0021,
        "most_specialised": [{"layer": 2, "specialisation": 0.213, "experts": tops}],
    }


def test_routing_before_and_after_stands_side_by_side() -> None:
    after = summary_of_routing("after", effective_experts=6.5, load_drift=0.083, same_experts=0.814)
    text = "".join(map(shown, routing_block([summary_of_routing("before"), summary_of_routing("step-8"), after])))
    for part in ("to 8 experts", "7.0 → 6.5", "1.50 → 1.50", "0.2 → 0.2", "8.3%", "81.4%", "by chance 0.002"):
        assert part in text
    assert "layer 2: 0.213  math 3 (45%, lift 1.8)\n" in text
    assert "c[a]" in text
    assert "evals/after-routing.json" in text
    assert max(map(len, text.splitlines())) <= 100


def test_routing_without_a_comparison_is_left_out() -> None:
    after = summary_of_routing("after")
    assert routing_block([]) == routing_block([after]) == []
    alone = after | {"most_specialised": [], "specialisation_by_chance": None}
    [table, _] = routing_block([summary_of_routing("before"), alone])
    assert "-" in shown(table)


def lines_of(parts: list[str]) -> list[str]:
    return [line.rstrip() for part in parts for line in shown(part).splitlines() if line.strip()]


def test_the_use_of_processors_and_memory_is_told() -> None:
    phases = {"data_wait_s": 0.5, "forward_s": 3.0, "backward_s": 5.5, "optimizer_s": 0.5, "other_s": 0.5}
    train: dict[str, Any] = {"duration_s": 10.0, "steps": 8, "phases": phases, "peak_memory_bytes": 1_234_000_000}
    train |= {"model_flops_utilisation": 0.4215, "frozen_saving": None, "steps_skipped": 0}
    assert lines_of(_measurements(train)) == [
        "  utilisation    MFU 42.1% of the peak, 1.23 GB of memory at most",
        "  step           1.25 s: data wait 5%, forward 30%, backward 55%, optimizer 5%, other 5%",
    ]
    train |= {"model_flops_utilisation": None, "steps_skipped": 2, "peak_memory_bytes": 12_600_000}
    train["frozen_saving"] = {"memory_bytes": 58_000_000_000, "flops_fraction": 0.3}
    first, _, *more = lines_of(_measurements(train))
    assert first == "  utilisation    13 MB of memory at most"
    assert more == [
        "  frozen parts   save 58.00 GB a worker and 30.0% of the operations",
        "  skipped        2 steps, whose gradient was not finite",
    ]


def test_the_first_warnings_are_shown_and_all_are_counted() -> None:
    assert _warnings([]) == []
    warnings = [{"kind": "loss_spike", "message": f"step {step}: [9]"} for step in range(7)]
    lines = lines_of(_warnings(warnings))
    assert lines[:2] == ["Warnings  7", "  loss_spike: step 0: [9]"]
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 7


def test_proofs_are_counted_and_a_failed_one_has_its_figures() -> None:
    passed = {"name": "data", "passed": True, "measured": 0.0, "tolerance": 0.0}
    failed = {"name": "gradient", "passed": False, "measured": 0.5, "tolerance": 1e-6}
    starts = [{"proofs": [passed]}, {"proofs": [passed, failed]}]
    assert lines_of(_proofs(starts)) == ["Proofs  2 passed: data", "  failed gradient: 0.5, tolerance 1e-06"]
    assert _proofs([]) == []


def test_conversations_left_out_are_listed() -> None:
    assert _unfit_rows({"unfit_rows": []}) == []
    row = {"file": "a[1].jsonl", "row": 4, "reason": "too_long", "tokens": 5000}
    assert lines_of(_unfit_rows({"unfit_rows": [row] * 6, "unfit_rows_url": "/p/unfit.parquet"})) == [
        "Conversations left out",
        *["  a[1].jsonl row 4: too long, 5,000 tokens"] * 5,
        "  all of them: /p/unfit.parquet",
    ]
