"""The ledger: what it lets pass, and what it stops."""

from __future__ import annotations

from collections import Counter

import pytest

from ray_jobs.data.accounting import Counted, Ledger


def test_stages_that_add_up_are_told_with_what_went_where() -> None:
    ledger = Ledger(["a", "b"])
    ledger.stage("read", Counter({0: 5, 1: 1}), Counter({0: 4, 1: 2}), Counter({1: 2}), bad=Counter({0: 1, 1: 1}))
    ledger.stage("dedup", Counter({0: 4, 1: 2}), Counter({0: 2, 1: 2}), near=Counter({0: 1}), exact=Counter({0: 1}))
    assert ledger.stages == [
        {"stage": "read", "rows_in": 6, "made": 2, "rows_out": 6, "gone": {"bad": 2}},
        {"stage": "dedup", "rows_in": 6, "made": 0, "rows_out": 4, "gone": {"near": 1, "exact": 1}},
    ]


@pytest.mark.parametrize(
    ("on", "bad"), [({0: 4, 1: 3}, {}), ({0: 5, 1: 3}, {1: 1}), ({0: 4, 1: 4}, {}), ({0: 5, 1: 2}, {})]
)
def test_a_lost_or_made_up_row_stops_the_run(on: dict[int, int], bad: dict[int, int]) -> None:
    """The third case has the right total: one source's row has become the other's."""
    with pytest.raises(AssertionError, match="stage 'read' lost rows of source"):
        Ledger(["a", "b"]).stage("read", Counter({0: 5, 1: 3}), Counter(on), bad=Counter(bad))


@pytest.mark.parametrize("made", [{}, {0: 1}, {0: 3}, {1: 2}])
def test_conversations_that_a_row_gave_beyond_one_must_add_up(made: dict[int, int]) -> None:
    rows_in, on = Counter({0: 2, 1: 2}), Counter({0: 4, 1: 2})
    with pytest.raises(AssertionError, match="stage 'read' lost rows of source"):
        Ledger(["a", "b"]).stage("read", rows_in, on, Counter(made))
    Ledger(["a", "b"]).stage("read", rows_in, on, Counter({0: 2}))


def test_a_row_lost_between_two_stages_stops_the_run() -> None:
    ledger = Ledger(["a", "b"])
    ledger.stage("read", Counter({0: 5}), Counter({0: 5, 1: 0}))
    with pytest.raises(AssertionError, match="came to stage 'dedup'"):
        ledger.stage("dedup", Counter({0: 4}), Counter({0: 4}))
    ledger.stage("dedup", Counter({0: 5}), Counter({0: 5}))


def test_items_are_counted_as_they_pass() -> None:
    items = Counted(iter("abc"))
    assert items.count == 0
    assert list(items) == ["a", "b", "c"]
    assert items.count == 3
