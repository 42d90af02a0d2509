"""Reading packed rows: any row, in any order, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from ray_jobs.data.packed_rows import PACKED_SCHEMA, ROWS_PER_GROUP, PackedRow, PackedRows
from ray_jobs.data.parquet_files import parquet_writer
from ray_jobs.train.batches import RowOrder, share_of_worker


def packed_row(number: int) -> PackedRow:
    lengths = np.array([number % 5 + 1, 3], dtype=np.int32)
    tokens = np.arange(number, number + lengths.sum(), dtype=np.int32)
    return PackedRow(tokens, tokens % 2 == 0, lengths, ("code", f"c{number % 3}"))


def write_shards(directory: Path, sizes: list[int]) -> list[PackedRow]:
    rows = [packed_row(number) for number in range(sum(sizes))]
    start = 0
    for shard, size in enumerate(sizes):
        lines = [
            {
                "tokens": row.tokens,
                "trained": row.trained,
                "document_lengths": row.document_lengths,
                "document_categories": list(row.document_categories),
            }
            for row in rows[start : start + size]
        ]
        with parquet_writer(f"{directory}/shard-{shard:05d}.parquet", PACKED_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(lines, PACKED_SCHEMA), row_group_size=ROWS_PER_GROUP)
        start += size
    return rows


def assert_same(actual: PackedRow, expected: PackedRow) -> None:
    for name, dtype in (("tokens", np.int32), ("trained", np.bool_), ("document_lengths", np.int32)):
        array = getattr(actual, name)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, getattr(expected, name))
    assert actual.document_categories == expected.document_categories


def test_every_row_is_found_in_any_order(tmp_path: Path) -> None:
    expected = write_shards(tmp_path, [40, 1, 200])
    rows = PackedRows(str(tmp_path))
    assert len(rows) == 241
    for index in np.random.default_rng(0).permutation(241).tolist():
        assert_same(rows[index], expected[index])


def test_only_the_last_groups_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [ROWS_PER_GROUP * 20])
    rows = PackedRows(str(tmp_path))
    for index in range(len(rows)):
        rows[index]
        assert len(rows._kept) <= 8
    monkeypatch.setattr(rows, "_file", lambda path: pytest.fail(f"{path} is read again"))
    assert_same(rows[len(rows) - 1], packed_row(len(rows) - 1))


def counting(rows: PackedRows, read: list[int]) -> Callable[[int], pa.Table]:
    read_group = rows._group

    def group(number: int) -> pa.Table:
        read.append(number)
        return read_group(number)

    return group


def test_a_worker_that_resumes_reads_its_share_of_the_step_and_nothing_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_shards(tmp_path, [100, 100, 50])
    order = RowOrder(num_rows=250, epochs=2, global_batch_rows=8, seed=5)
    step = 40
    numbers = order.rows_of_step(step)
    for rank in range(4):
        rows = PackedRows(str(tmp_path))
        read: list[int] = []
        monkeypatch.setattr(rows, "_group", counting(rows, read))
        share = share_of_worker(numbers, rank, 4)
        for place, number in enumerate(share):
            assert number == numbers[2 * rank + place]
            assert_same(rows[number], expected[number])
        assert len(read) == 2


def test_an_index_out_of_range_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    for index in (-1, 3):
        with pytest.raises(IndexError):
            PackedRows(str(tmp_path))[index]


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "[a-z]*? {1}"
    expected = write_shards(directory, [2])
    rows = PackedRows(str(directory))
    assert len(rows) == 2
    assert_same(rows[1], expected[1])


def test_an_empty_shard_holds_no_rows_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path / "held_out", [0])
    assert len(PackedRows(str(tmp_path / "held_out"))) == 0
    with pytest.raises(FileNotFoundError):
        PackedRows(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no packed rows in .*/empty"):
        PackedRows(str(tmp_path / "empty"))


def test_a_file_that_is_not_finished_does_not_appear(tmp_path: Path) -> None:
    def fail() -> None:
        with parquet_writer(f"{tmp_path}/shard-00000.parquet", PACKED_SCHEMA):
            assert len(list(tmp_path.iterdir())) == 1, "it is being written, beside its place"
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_an_error_cuts_short_is_removed() -> None:
    store = fsspec.filesystem("memory")

    def fail() -> None:
        with parquet_writer("memory://cut/shard-00000.parquet", PACKED_SCHEMA):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert store.find("memory://cut") == []
