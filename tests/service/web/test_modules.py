"""The page's own arithmetic, run in the browser."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page

FORMATS: list[tuple[str, list[Any], str]] = [
    ("integer", [1234567], "1 234 567"),
    ("integer", [-1234], "-1 234"),
    ("integer", [None], "\N{EN DASH}"),
    ("decimal", [-0.0001, 2], "0.00"),
    ("decimal", [1234.5, 1], "1 234.5"),
    ("significant", [0.00002], "2.00e-5"),
    ("significant", [0.00412], "0.00412"),
    ("significant", [8.3702], "8.37"),
    ("significant", [5310.2], "5 310"),
    ("significant", [0], "0"),
    ("percent", [0.4275], "42.8 %"),
    ("signedPercent", [-0.487], "-48.7 %"),
    ("signedPercent", [0.02], "+2.0 %"),
    ("duration", [4.25], "4.3 s"),
    ("duration", [119.6], "2:00"),
    ("duration", [59.7], "60 s"),
    ("duration", [3725], "1:02:05"),
    ("bytes", [994058240], "994 MB"),
    ("bytes", [12081664], "12.1 MB"),
    ("bytes", [0], "0 B"),
    ("estimate", [{"value": 0.0203, "noise": 0.0619}], "+2.0 % ± 6.2"),
    ("estimate", [{"value": 0.0203, "noise": None}], "+2.0 %"),
    ("words", ["near_duplicates"], "near duplicates"),
    ("counted", [1, "trial"], "1 trial"),
]


@pytest.fixture
def run(page: Page) -> Any:
    """Runs an expression of JavaScript in which `m` is a module below `js/pure/`."""
    page.goto("/")

    def run(module: str, expression: str, argument: Any = None) -> Any:
        return page.evaluate(
            f"async (argument) => {{ const m = await import('/web/js/pure/{module}.js'); return {expression} }}",
            argument,
        )

    return run


def test_numbers_are_written_so_that_they_line_up(run: Any) -> None:
    found = run("format", "argument.map(([name, values]) => m[name](...values))", [case[:2] for case in FORMATS])
    plain = [text.replace("\u202f", " ").replace("\N{MINUS SIGN}", "-") for text in found]
    assert plain == [expected for _, _, expected in FORMATS]


def test_a_stream_is_parsed_however_it_is_cut(run: Any) -> None:
    text = ': \n\nevent: train.step\nid: 7\ndata: {"a": "x: y"}\n\nevent: end\ndata: {}\n\n'
    cut = "((p) => argument[0].flatMap((part) => p.push(part)))(new m.EventParser())"
    whole = run("sse", cut, [[text]])
    assert whole == [
        {"event": "train.step", "id": "7", "data": '{"a": "x: y"}'},
        {"event": "end", "id": None, "data": "{}"},
    ]
    assert run("sse", cut, [list(text)]) == whole


def test_a_long_run_is_thinned_and_keeps_its_newest_step(run: Any) -> None:
    fill = (
        "(() => {const s = new m.Series(100); for (let step = 1; step <= argument; ++step) s.add({step}); return s})()"
    )
    steps = run("series", f"{fill}.rows().map((point) => point.step)", 1000)
    assert len(steps) <= 101
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert {b - a for a, b in pairwise(steps[:-1])} == {16}
    assert run("series", f"{fill}.stride", 1000) == 16


def test_a_step_that_a_restart_takes_again_counts_once(run: Any) -> None:
    again = "(() => { const s = new m.Series(); for (const p of argument) s.add(p); return s.rows() })()"
    points = [{"step": step, "loss": step} for step in (1, 2, 3, 4)] + [{"step": 3, "loss": 30}]
    assert run("series", again, points) == [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 3, "loss": 30}]


def test_a_running_mean_has_no_bias_and_steps_over_gaps(run: Any) -> None:
    assert run("series", "m.smoothed(argument, 0.9)", [5, None, 5, 5]) == pytest.approx([5, None, 5, 5])
    assert run("series", "m.smoothed([0, 10], 0.5)[1]") == pytest.approx((0 * 0.25 + 10 * 0.5) / 0.75)


def test_what_is_spread_has_both_ends(run: Any) -> None:
    assert run("series", "m.spread(argument, 3)", list(range(11))) == [0, 5, 10]
    assert run("series", "m.spread([1, 2], 3)") == [1, 2]


def test_mixes_lie_where_their_shares_say(run: Any) -> None:
    height = 3**0.5 / 2
    assert run("simplex", "m.inTriangle([1, 0, 0])") == pytest.approx([0, height])
    assert run("simplex", "m.inTriangle([0, 0, 2])") == pytest.approx([0.5, 0]), "shares are scaled"
    assert run("simplex", "m.inTriangle([1, 1, 1])") == pytest.approx([0.5, height * 2 / 3])
    [start, end] = run("simplex", "m.triangleLine(2, 0.5)")
    assert start == pytest.approx([0.25, height / 2])
    assert end == pytest.approx([0.75, height / 2])
    assert run("simplex", "m.onAxes([1, 0, 0.5])") == [[0, 0], [0.5, 1], [1, 0.5]]
    assert run("simplex", "m.largestShare([{a: 0.61, b: 0.39}])") == pytest.approx(0.7)
    assert run("simplex", "m.largestShare([{a: 0.7}])") == pytest.approx(0.7)


def test_loads_are_told_as_ratios_to_an_even_one(run: Any) -> None:
    assert run("heat", "m.ratios([[1, 3], [0, 0]])") == [[0.5, 1.5], [1, 1]]
    assert run("heat", "m.sum([[[1, 2]], [[3, 4]]])") == [[4, 6]]
    assert run("heat", "m.heat(1)") == {"side": "high", "strength": 0}
    assert run("heat", "[m.heat(0.5).side, m.heat(0.5).strength, m.heat(2).strength]") == ["low", 0.5, 0.5]
    assert run("heat", "m.heat(0)") == {"side": "low", "strength": 1}


def test_a_resumed_history_goes_on_where_it_was(run: Any) -> None:
    fold = "(() => { const h = m.emptyHistory(); for (const e of argument) m.fold(h, e); return h })()"
    events = [
        event(1, "stage.started", "prepare"),
        event(2, "stage.finished", "prepare", duration_s=40.0, reused=False, summary={"rows": 1}),
        event(3, "stage.started", "train"),
        event(3, "stage.started", "export"),
        event(4, "job.started"),
        event(5, "stage.finished", "prepare", duration_s=0.5, reused=True, summary={"rows": 1}),
    ]
    stages = run("history", f"{fold}.stages", events)
    assert stages["prepare"] == {"state": "finished", "duration": 40.0, "reused": True}
    assert stages["train"]["state"] == "pending", "the driver that was in it is gone"
    assert stages["export"]["state"] == "pending", "an event that was seen already"


def event(sequence: int, type: str, stage: str | None = None, **data: Any) -> dict[str, Any]:
    return {"sequence": sequence, "type": type, "stage": stage, "attempt": 1, "message": "", "time": "", "data": data}


def test_evaluations_are_in_the_order_in_which_they_were(run: Any) -> None:
    found = [
        {"when": when, "step": step} for when, step in (("after", 90), ("step-50", 50), ("before", 0), ("step-5", 5))
    ]
    order = "m.inOrder(new Map(argument.map((one) => [one.when, one]))).map((one) => one.when)"
    assert run("history", order, found) == ["before", "step-5", "step-50", "after"]


def test_what_can_be_done_follows_from_the_status(run: Any) -> None:
    verbs = "Object.fromEntries(argument.map((status) => [status, m.actionsOf(status, 'job').map(({verb}) => verb)]))"
    assert run("actions", verbs, ["running", "cancelling", "failed", "succeeded"]) == {
        "running": ["cancel"],
        "cancelling": [],
        "failed": ["resume", "retry"],
        "succeeded": ["retry"],
    }
    assert "on_bad_row" in run("actions", "m.remedy({code: 'bad_row', fault: 'data'})")
    assert "spec is not to blame" in run("actions", "m.remedy({code: 'new', fault: 'infrastructure'})")
