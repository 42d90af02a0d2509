"""Moving tokens from tokenised parts into shards of packed rows: the two kinds of Ray tasks of a shuffle.

Rows take their documents from anywhere in the corpus, so the documents are first ordered by shard:

    order_batch   reads a batch, documents that follow each other in the parts, and writes it as one Arrow file whose
                  record batch s holds what goes to shard s, in the order in which it lies there
    write_shard   reads its record batch of each of those files, lays the documents into rows, writes a Parquet shard

Memory of a task does not depend on the corpus. With B tokens a batch and S tokens a shard, at most, in bytes:

    order_batch   5 B (tokens, mask) + B / 8 (mask as bits) + one row group of a part (512 conversations)
    write_shard   5 S (tokens, mask) + S / 8 + 5 1/8 min(B, S) (one record batch, its mask as bytes too)

and 30 for each document beside it. At 32M tokens each that is 170 and 345 MB. Each token is read from Parquet once,
written and read once more at 4 1/8 bytes, and written to Parquet. There are (tokens / B) x (tokens / S) slices: 24 x 24
of 6 MB for 800M tokens; at a hundred times as many tokens, 60 kB, B and S should grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from fsspec.core import url_to_fs

from ray_jobs.data.document_tokens import DocumentTokens
from ray_jobs.data.packed_rows import PACKED_SCHEMA, ROWS_PER_GROUP
from ray_jobs.data.parquet_files import part_url, whole_file
from ray_jobs.run_directory import write_file
from service.rows.sources import digest

ORDERED_SCHEMA = pa.schema([("tokens", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))])


class Documents(NamedTuple):
    """N documents: tokenised conversations, or pieces of them.

    Attributes:
        file, position: int32, int64 [N]; where the tokens lie: the part's number, the line in it.
        head, start, length: int64 [N], as in `cutting.Piece`.
        category: int32 [N], an index of the category names.
    """

    file: np.ndarray
    position: np.ndarray
    head: np.ndarray
    start: np.ndarray
    length: np.ndarray
    category: np.ndarray

    def take(self, order: np.ndarray) -> Documents:
        """Some of them, in this order."""
        return Documents(*(column[order] for column in self))


class Shard(NamedTuple):
    """N documents in R rows.

    Attributes:
        batch: int32 [N], number of the batch that a document is in.
        length: int64 [N].
        category: int32 [N], an index of the category names.
        borders: int32 [R + 1]; row r has the documents `borders[r]` to `borders[r + 1]`.
    """

    batch: np.ndarray
    length: np.ndarray
    category: np.ndarray
    borders: np.ndarray


@dataclass(frozen=True)
class ShardRecord:
    """What lies in a shard; kept beside it, as JSON, once the shard is whole.

    Attributes:
        rows, num_bytes, sha256: of the Parquet file.
        documents, tokens, trained_tokens: by category.
    """

    rows: int
    num_bytes: int
    sha256: str
    documents: dict[str, int]
    tokens: dict[str, int]
    trained_tokens: dict[str, int]


@ray.remote  # type: ignore[untyped-decorator]
def order_batch(batch: Documents, borders: np.ndarray, tokenised_url: str, ordered_url: str) -> None:
    """Write a batch, ordered by shard; nothing is done where an earlier run has written it.

    Args:
        batch: documents that follow each other in the tokenised parts, in the order in which they lie in rows.
        borders: int64 [shards + 1]; shard s gets the documents `borders[s]` to `borders[s + 1]`.
        tokenised_url: directory of the tokenised parts.
        ordered_url: file to write.
    """
    filesystem, path = url_to_fs(ordered_url)
    if filesystem.exists(path):
        return
    ordered = DocumentTokens.of_length(batch.length)
    targets, num_copied = ordered.starts, 0
    for chosen, places, documents in _read_parts(batch, tokenised_url):
        head, start, length = batch.head[places], batch.start[places], batch.length[places]
        if (np.maximum(head, start + length - head) > documents.lengths[chosen]).any():
            raise AssertionError(f"documents in {tokenised_url} are shorter than the index says")
        documents.copy(documents.starts[chosen], head, ordered, targets[places])
        documents.copy(documents.starts[chosen] + start, length - head, ordered, targets[places] + head)
        num_copied += len(places)
    if num_copied != len(batch.length):
        raise AssertionError(f"{len(batch.length)} documents should lie in {tokenised_url}, {num_copied} do")
    with whole_file(ordered_url) as sink, pa.ipc.new_file(sink, ORDERED_SCHEMA) as writer:
        for start, stop in pairwise(borders.tolist()):
            columns = ordered.lists(np.arange(start, stop + 1))
            writer.write_batch(pa.record_batch(columns, schema=ORDERED_SCHEMA))


def _read_parts(batch: Documents, tokenised_url: str) -> Iterator[tuple[np.ndarray, np.ndarray, DocumentTokens]]:
    """The row groups that hold the batch's documents: which of the group, their places in the batch, and the group."""
    order = np.lexsort((batch.position, batch.file))
    file_of, position_of = batch.file[order], batch.position[order]
    for number in np.unique(file_of).tolist():
        start, stop = np.searchsorted(file_of, [number, number + 1])
        filesystem, path = url_to_fs(part_url(tokenised_url, number))
        with filesystem.open(path, "rb") as stream, pq.ParquetFile(stream) as part:
            begin = 0
            for group in range(part.num_row_groups):
                end = begin + part.metadata.row_group(group).num_rows
                here = slice(*np.searchsorted(position_of[start:stop], [begin, end]) + start)
                if here.start < here.stop:
                    yield position_of[here] - begin, order[here], _read_group(part, group)
                begin = end


def _read_group(part: pq.ParquetFile, group: int) -> DocumentTokens:
    return DocumentTokens.of_table(part.read_row_group(group, columns=ORDERED_SCHEMA.names))


@ray.remote  # type: ignore[untyped-decorator]
def find_shard(shard_url: str) -> ShardRecord | None:
    """The record of a shard that an earlier run has written; None if there is none or the file is another."""
    filesystem, path = url_to_fs(_record_url(shard_url))
    if not filesystem.exists(path):
        return None
    record = ShardRecord(**json.loads(filesystem.cat_file(path)))
    try:
        return record if digest(shard_url) == record.sha256 else None
    except FileNotFoundError:
        return None


@ray.remote  # type: ignore[untyped-decorator]
def write_shard(
    shard: Shard, number: int, ordered_urls: Sequence[str], shard_url: str, categories: Sequence[str]
) -> ShardRecord:
    """Write packed rows, and their record beside them.

    Args:
        shard: which documents, and in which rows.
        number: its place among the shards.
        ordered_urls: files of all batches.
        shard_url: file to write.
        categories: names.
    """
    documents = DocumentTokens.of_length(shard.length)
    targets = documents.starts
    for batch in np.unique(shard.batch).tolist():
        places = np.flatnonzero(shard.batch == batch)
        piece = _read_ordered(ordered_urls[batch], number)
        if not np.array_equal(piece.lengths, documents.lengths[places]):
            raise AssertionError(f"{ordered_urls[batch]} does not hold the documents of shard {number}")
        piece.copy(piece.starts, piece.lengths, documents, targets[places])
    names = pa.array(categories, pa.string()).take(pa.array(shard.category))
    lists = [
        pa.ListArray.from_arrays(pa.array(shard.borders, pa.int32()), values)
        for values in (pa.array(shard.length, pa.int32()), names)
    ]
    table = pa.table(documents.lists(shard.borders) + lists, schema=PACKED_SCHEMA)
    with whole_file(shard_url) as sink, pq.ParquetWriter(sink, PACKED_SCHEMA, compression="zstd") as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    record = ShardRecord(table.num_rows, sink.num_bytes, sink.sha256, *_totals(documents, shard.category, categories))
    write_file(_record_url(shard_url), json.dumps(asdict(record)).encode())
    return record


def _record_url(shard_url: str) -> str:
    return shard_url.removesuffix(".parquet") + ".json"


def _read_ordered(url: str, number: int) -> DocumentTokens:
    filesystem, path = url_to_fs(url)
    with filesystem.open(path, "rb") as stream, pa.ipc.open_file(stream) as reader:
        return DocumentTokens.of_table(reader.get_batch(number))


def _totals(documents: DocumentTokens, category: np.ndarray, categories: Sequence[str]) -> Iterator[dict[str, int]]:
    """Documents, tokens and trained tokens by category."""
    starts = documents.starts
    trained = np.add.reduceat(documents.trained, starts, dtype=np.int64) if len(starts) else starts
    for weights in (None, documents.lengths, trained):
        totals = np.bincount(category, weights, len(categories)).astype(int).tolist()
        yield {name: total for name, total in zip(categories, totals, strict=True) if total}
