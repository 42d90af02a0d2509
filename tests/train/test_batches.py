from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import RowOrder, collate, share_of_worker
from ray_jobs.train.engine import TrainingStep
from tests.moe.conftest import tiny_model


@pytest.mark.parametrize("num_rows", [1, 7, 8, 30])
def test_every_row_is_taken_once_an_epoch_and_the_rest_is_empty(num_rows: int) -> None:
    order = RowOrder(num_rows, epochs=3, global_batch_rows=8, seed=5)
    steps = -(-num_rows * 3 // 8)
    stream = [row for step in range(steps) for row in order.rows_of_step(step)]
    real, empty = stream[: num_rows * 3], stream[num_rows * 3 :]
    assert all(row is None for row in empty)
    assert len(empty) < 8
    for epoch in range(3):
        assert sorted(real[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    if num_rows == 30:
        assert real[:30] != real[30:60], "each epoch has its own order"


def test_order_does_not_depend_on_the_number_of_workers() -> None:
    rows = RowOrder(30, epochs=1, global_batch_rows=8, seed=0).rows_of_step(2)
    for num_workers in (1, 2, 4, 8):
        shares = [share_of_worker(rows, rank, num_workers) for rank in range(num_workers)]
        assert [row for share in shares for row in share] == rows
        assert Counter(len(share) for share in shares) == {8 // num_workers: num_workers}


def _row(lengths: list[int], names: tuple[str, ...]) -> PackedRow:
    tokens = np.arange(sum(lengths), dtype=np.int32)
    return PackedRow(tokens, tokens % 2 == 1, np.array(lengths, dtype=np.int32), names)


def test_collate_lays_rows_end_to_end_without_padding() -> None:
    batch = collate([_row([2, 3], ("math", "code")), None, _row([4], ("math",))], ["code", "math"], "cpu")
    assert batch.packed.tokens_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.packed.documents.lengths == (2, 3, 4)
    assert batch.packed.documents.positions_T.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert batch.packed.row_lengths == (5, 4)
    assert batch.categories_T.tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert (batch.num_tokens, batch.num_trained) == (9, 4)


def test_empty_batch_weighs_nothing() -> None:
    batch = collate([None], ["code"], "cpu")
    assert (batch.num_tokens, batch.num_trained) == (0, 0)
    assert len(batch.packed.tokens_T) == 1, "but still takes part in the collectives"


def test_empty_batch_moves_no_weight_and_no_metric() -> None:
    step = TrainingStep(tiny_model(), balance_loss_coefficient=0.01, num_categories=1)
    loss, sums = step(collate([None], ["code"], "cpu"), 1.0, 1.0)
    loss.backward()
    assert loss.item() == 0
    assert not sums.any()
    for name, parameter in step.named_parameters():
        assert parameter.grad is not None, f"{name}: DeepSpeed waits for every gradient"
        assert not parameter.grad.any(), name
