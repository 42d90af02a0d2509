"""A resumed run gives every row that is left, once each, or says how many it would repeat and skip."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ray_jobs.train.batches import RowOrder
from ray_jobs.train.cursor import check_cursor, data_cursor, repeated_and_skipped
from service.errors import CheckpointError

ORDER = RowOrder(num_rows=10, epochs=3, global_batch_rows=4, seed=5)


@pytest.mark.parametrize("step", range(9))
def test_going_on_where_the_checkpoint_was_written_repeats_and_skips_nothing(step: int) -> None:
    saved = json.loads(json.dumps(data_cursor(ORDER, step)))
    assert saved["rows_consumed"] == min(30, 4 * step)
    check_cursor(saved, ORDER, step)


def test_going_on_too_early_or_too_late_is_counted() -> None:
    saved = data_cursor(ORDER, 3)
    assert repeated_and_skipped(saved, ORDER, 2) == (4, 0)
    assert repeated_and_skipped(saved, ORDER, 5) == (0, 8)
    with pytest.raises(CheckpointError, match="step 5 would repeat 0 rows and skip 8"):
        check_cursor(saved, ORDER, 5)


def test_another_stream_is_counted_row_by_row() -> None:
    saved = data_cursor(ORDER, 1)
    reseeded = replace(ORDER, seed=6)
    rest = set(reseeded.rows_between(4, 10).tolist())
    again = len(rest & set(ORDER.rows_between(0, 4).tolist()))
    assert again > 0, "else this test proves nothing"
    assert repeated_and_skipped(saved, reseeded, 1) == (again, again)
    assert repeated_and_skipped(saved, replace(ORDER, global_batch_rows=5), 1) == (0, 1)
    fewer = replace(ORDER, num_rows=8)
    assert sum(repeated_and_skipped(saved, fewer, 1)) > 0
    check_cursor(data_cursor(ORDER, 5), replace(ORDER, global_batch_rows=5), 4)
    check_cursor(saved, replace(ORDER, epochs=4), 1)


def test_a_library_that_shuffles_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = data_cursor(ORDER, 2)
    monkeypatch.setattr(RowOrder, "_order", lambda self, epoch: np.arange(self.num_rows) + 0 * epoch)
    with pytest.raises(CheckpointError, match="cannot be computed again"):
        check_cursor(saved, ORDER, 2)


def test_an_order_that_draws_with_replacement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RowOrder, "_order", lambda self, epoch: np.random.default_rng([self.seed, epoch]).integers(0, 10, self.num_rows)
    )
    repeated, skipped = repeated_and_skipped(data_cursor(ORDER, 0), ORDER, 0)
    assert repeated == skipped > 0


def test_the_stream_is_the_epochs_one_after_another() -> None:
    whole = ORDER.rows_between(0, 99)
    assert sorted(whole[:10]) == sorted(whole[10:20]) == sorted(whole[20:]) == list(range(10))
    assert whole[:10].tolist() != whole[10:20].tolist()
    assert ORDER.rows_between(7, 22).tolist() == whole[7:22].tolist()
    assert ORDER.rows_between(28, 35).tolist() == whole[28:].tolist()
    assert ORDER.rows_between(30, 34).tolist() == ORDER.rows_between(5, 5).tolist() == []
