"""Rows from tokenised parts: the same bytes as the plainest way gives, through any number of batches and shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from ray_jobs.data import row_set, shards
from ray_jobs.data.certificate import sample_rows
from ray_jobs.data.packed_rows import PACKED_SCHEMA, ROWS_PER_GROUP, PackedRows
from ray_jobs.data.packing import pack
from ray_jobs.data.packing_report import Written
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_parquet
from ray_jobs.data.row_set import RowSetWriter, remove_ordered
from ray_jobs.data.shards import ORDERED_SCHEMA, Documents

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
ROW_LENGTH = 64
CATEGORIES = ["code", "general", "math"]


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    """Some 700 of 900 conversations in four parts of small row groups, some of them three times.

    They are cut at a row's length; some lack their first part, or what follows a head of a few tokens.
    """
    rng = np.random.default_rng(3)
    columns: list[list[int]] = [[], [], []]
    for file, size in enumerate((400, 0, 1, 499)):
        lengths = rng.integers(1, 90, size)
        pieces = [rng.integers(0, 1000, length).astype(np.int32) for length in lengths]
        table = [pa.array(pieces, pa.list_(pa.int32())), pa.array([p % 3 == 0 for p in pieces], pa.list_(pa.bool_()))]
        with parquet_writer(part_url(f"{tmp_path}/tokenised", file), ORDERED_SCHEMA) as writer:
            writer.write_table(pa.table(table, schema=ORDERED_SCHEMA), row_group_size=37)
        for column, values in zip(columns, ([file] * size, range(size), lengths.tolist()), strict=True):
            column.extend(values)
    chosen = np.concatenate([rng.permutation(900)[:700], np.repeat(np.arange(0, 900, 60), 2)])
    file, position, full_length = (np.array(column)[chosen] for column in columns)
    head = np.where(chosen % 4 == 0, full_length // 5, 0)
    start = np.maximum(head, np.where(chosen % 3 == 0, full_length // 4, 0))
    length = np.minimum(head + full_length - start, ROW_LENGTH)
    return Documents(file.astype(np.int32), position, head, start, length, (chosen % 3).astype(np.int32))


def write(documents: Documents, directory: Path) -> Written:
    writer = RowSetWriter(f"{directory}/tokenised", f"{directory}/packed", ROW_LENGTH, CATEGORIES, lambda *_: None)
    return writer.write(documents, "train", seed=7)


def write_plainly(documents: Documents, directory: Path) -> bytes:
    """One shard, row by row and document by document, with all parts in memory."""
    parts = [read_parquet(part_url(f"{directory}/tokenised", file)).to_pylist() for file in range(4)]
    packing = pack(documents.length, ROW_LENGTH)
    lines = []
    for row in np.split(packing.documents, packing.borders[1:-1]):
        found = [(parts[documents.file[n]][documents.position[n]], documents.take(n)) for n in row]
        lines.append(
            {
                "tokens": [token for line, document in found for token in taken(line["tokens"], document)],
                "trained": [is_ for line, document in found for is_ in taken(line["trained"], document)],
                "document_lengths": documents.length[row].tolist(),
                "document_categories": [CATEGORIES[documents.category[n]] for n in row],
            }
        )
    with parquet_writer(f"{directory}/plain.parquet", PACKED_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(lines, PACKED_SCHEMA), row_group_size=ROWS_PER_GROUP)
    return (directory / "plain.parquet").read_bytes()


def taken(values: list[Any], document: Documents) -> list[Any]:
    rest = values[document.start : document.start + document.length - document.head]
    return values[: document.head] + rest


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*") if path.is_file()}


def test_one_shard_holds_the_bytes_of_the_plainest_way(documents: Documents, tmp_path: Path) -> None:
    written = write(documents, tmp_path)
    content = (tmp_path / "packed" / "train" / "shard-00000.parquet").read_bytes()
    assert content == write_plainly(documents, tmp_path)
    assert written.shards == [
        {
            "file": "train/shard-00000.parquet",
            "rows": written.num_rows,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    ]
    rows = pq.read_table(tmp_path / "packed" / "train" / "shard-00000.parquet").to_pylist()
    assert written.num_rows == len(rows) >= written.bound_rows
    expected = [Counter[str]() for _ in range(3)]
    for row in rows:
        ends = np.cumsum(row["document_lengths"])
        for category, length, end in zip(row["document_categories"], row["document_lengths"], ends, strict=True):
            for total, amount in zip(expected, (1, length, sum(row["trained"][end - length : end])), strict=True):
                total[category] += amount
    assert [written.documents, written.tokens, written.trained] == expected


@pytest.mark.parametrize(("batch_tokens", "num_documents"), [(5, 200), (700, 730), (10**9, 730)])
def test_many_batches_and_shards_hold_the_same_rows(
    documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, num_documents: int
) -> None:
    documents = documents.take(np.arange(num_documents))
    write_plainly(documents, tmp_path)
    monkeypatch.setattr(row_set, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(row_set, "SHARD_TOKENS", 3 * ROWS_PER_GROUP * ROW_LENGTH)
    written = write(documents, tmp_path)
    assert len(written.shards) > 2
    assert [shard["rows"] for shard in written.shards[:-1]] == [48] * (len(written.shards) - 1)
    tables = [pq.read_table(tmp_path / "packed" / shard["file"]) for shard in written.shards]
    assert pa.concat_tables(tables).equals(pq.read_table(tmp_path / "plain.parquet"))
    num_batches = len(list((tmp_path / "packed" / "ordered" / "train").iterdir()))
    if batch_tokens > ROW_LENGTH:
        assert num_batches == -(-int(documents.length.sum()) // batch_tokens)
    else:
        assert num_batches > 150, "documents longer than a batch have one for themselves"
    remove_ordered(f"{tmp_path}/packed")
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["train"]
    assert len(PackedRows(f"{tmp_path}/packed/train")) == written.num_rows


def test_any_filesystem_will_do(documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write(documents, tmp_path)
    for name in ("find_shard", "order_batch", "write_shard", "certify_rows"):  # what is in memory no worker sees
        monkeypatch.setattr(row_set, name, SimpleNamespace(remote=getattr(row_set, name)._function))
    monkeypatch.setattr(row_set, "ray", SimpleNamespace(get=lambda result: result))
    root = f"memory:/{tmp_path}"
    fsspec.filesystem("memory").put(f"{tmp_path}/tokenised", f"{root}/tokenised", recursive=True)
    writer = RowSetWriter(f"{root}/tokenised", f"{root}/packed", ROW_LENGTH, CATEGORIES, lambda *_: None)
    assert writer.write(documents, "train", seed=7) == expected
    assert writer.write(documents, "train", seed=7) == expected
    remove_ordered(f"{root}/packed")
    assert [path.rpartition("/")[2] for path in fsspec.filesystem("memory").ls(f"{root}/packed", detail=False)] == [
        "train"
    ]


def test_no_documents_are_one_shard_without_rows(documents: Documents, tmp_path: Path) -> None:
    written = write(documents.take(np.arange(0)), tmp_path)
    assert (written.num_rows, written.bound_rows, written.documents) == (0, 0, Counter())
    assert [shard["rows"] for shard in written.shards] == [0]
    assert len(PackedRows(f"{tmp_path}/packed/train")) == 0


def test_a_killed_run_goes_on_with_what_is_whole(
    documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_set, "BATCH_TOKENS", 5000)
    monkeypatch.setattr(row_set, "SHARD_TOKENS", 3 * ROWS_PER_GROUP * ROW_LENGTH)
    first = write(documents, tmp_path)
    expected = digests(tmp_path / "packed")
    train, ordered = tmp_path / "packed" / "train", tmp_path / "packed" / "ordered" / "train"
    (train / "shard-00001.json").unlink()
    (train / "shard-00002.parquet").write_bytes(b"torn")
    (train / "shard-00003.parquet").unlink()
    (ordered / "batch-00001.arrow").unlink()
    kept = {path: path.stat().st_mtime_ns for path in [*train.iterdir(), *ordered.iterdir()]}
    again = write(documents, tmp_path)
    assert (again, digests(tmp_path / "packed")) == (first, expected)
    changed = {path.name for path, time_ns in kept.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {"shard-00001.parquet", "shard-00002.parquet", "shard-00002.json", "shard-00003.json"}
    remove_ordered(f"{tmp_path}/packed")
    assert write(documents, tmp_path) == first
    assert not ordered.exists(), "whole shards need no document again"


def test_a_part_that_is_not_what_the_index_says_stops_the_run(documents: Documents, tmp_path: Path) -> None:
    for shift in (documents._replace(start=documents.start + 90), documents._replace(head=documents.head + 90)):
        with pytest.raises(AssertionError, match="are shorter than the index says"):
            write(shift._replace(length=np.full_like(shift.length, ROW_LENGTH)), tmp_path)
    beyond = documents._replace(position=documents.position + 499)
    with pytest.raises(AssertionError, match="documents should lie in"):
        write(beyond, tmp_path)
    assert not list((tmp_path / "packed").rglob("*.arrow*"))


def test_documents_of_another_batch_are_not_taken(
    documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(documents, tmp_path)
    for path in (tmp_path / "packed" / "train").iterdir():
        path.unlink()
    with pytest.raises(AssertionError, match="does not hold the documents of shard 0"):
        write(documents.take(np.arange(500)), tmp_path)


def test_a_record_tells_what_lies_beside_it(documents: Documents, tmp_path: Path) -> None:
    write(documents, tmp_path)
    record: dict[str, Any] = json.loads((tmp_path / "packed" / "train" / "shard-00000.json").read_text())
    assert record == {**record, "rows": len(PackedRows(f"{tmp_path}/packed/train"))}
    assert sum(record["tokens"].values()) == documents.length.sum()
    url = f"{tmp_path}/packed/train/shard-00000.parquet"
    assert ray.get(shards.find_shard.remote(url)) == shards.ShardRecord(**record)


def test_sampled_rows_are_proved_by_what_their_parts_hold(documents: Documents, tmp_path: Path) -> None:
    samples = write(documents, tmp_path).samples
    rows = PackedRows(f"{tmp_path}/packed/train")
    assert [line["row"] for line in samples] == sample_rows(len(rows), seed=7).tolist()
    assert len({line["row"] for line in samples}) == 8
    parts = [read_parquet(part_url(f"{tmp_path}/tokenised", file)).to_pylist() for file in range(4)]
    for sample in samples:
        row, end = rows[sample["row"]], 0
        for line, length in zip(sample["documents"], row.document_lengths.tolist(), strict=True):
            assert (line["begin"], line["end"]) == (end, end + length)
            end += length
            whole = parts[line["part"]][line["position"]]["tokens"]
            tokens = row.tokens[line["begin"] : line["end"]]
            assert tokens.tolist() == whole[: line["head"]] + whole[line["start"] :][: length - line["head"]]
            assert line["is_whole"] == (tokens.tolist() == whole)
            content = tokens.tobytes() + row.trained[line["begin"] : line["end"]].tobytes()
            assert line["sha256"] == hashlib.sha256(content).hexdigest()
    assert {line["is_whole"] for sample in samples for line in sample["documents"]} == {True, False}


@pytest.mark.parametrize(
    ("column", "message"),
    [("tokens", "are not those of part"), ("trained", "are not those of part"), ("document_lengths", "should have")],
)
def test_a_row_that_holds_something_else_stops_the_run(
    documents: Documents, tmp_path: Path, column: str, message: str
) -> None:
    documents = documents.take(np.arange(9))
    written = write(documents, tmp_path)
    path = tmp_path / "packed" / written.shards[0]["file"]
    lines = pq.read_table(path).to_pylist()
    values = lines[0][column]
    values[0], values[-1] = (not values[0], values[-1]) if column == "trained" else (values[0] + 1, values[-1] - 1)
    with parquet_writer(str(path), PACKED_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(lines, PACKED_SCHEMA))
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    with pytest.raises(AssertionError, match=message):
        write(documents, tmp_path)
