"""Writing one shard of packed rows: a Ray task that moves tokens from their parts into rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray

from ray_jobs.data.packed_rows import PACKED_SCHEMA, ROWS_PER_GROUP
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_parquet


class Document(NamedTuple):
    """A tokenised conversation to pack.

    Attributes:
        file, position: where its tokens lie: the part's number, the line in it.
        head, start, length: which of them to take: the first `head`, then those from `start` on, `length` in all.
        category: its category.
    """

    file: int
    position: int
    head: int
    start: int
    length: int
    category: str


@ray.remote  # type: ignore[untyped-decorator]
def write_shard(
    rows: Sequence[Sequence[Document]], tokenised_url: str, shard_url: str
) -> dict[str, tuple[int, int, int]]:
    """Write packed rows.

    Args:
        rows: documents of each row, in order.
        tokenised_url: directory of the tokenised parts.
        shard_url: file to write.

    Returns:
        By category: documents, tokens, trained tokens.
    """
    parts = _Parts(tokenised_url)
    counts: dict[str, np.ndarray] = {}
    lines = []
    for row in rows:
        pieces = [parts.read(document) for document in row]
        for document, (tokens, trained) in zip(row, pieces, strict=True):
            count = counts.setdefault(document.category, np.zeros(3, dtype=np.int64))
            count += (1, len(tokens), int(trained.sum()))
        lines.append(
            {
                "tokens": np.concatenate([tokens for tokens, _ in pieces]),
                "trained": np.concatenate([trained for _, trained in pieces]),
                "document_lengths": [document.length for document in row],
                "document_categories": [document.category for document in row],
            }
        )
    columns = [pa.array([line[field.name] for line in lines], field.type) for field in PACKED_SCHEMA]
    with parquet_writer(shard_url, PACKED_SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=PACKED_SCHEMA), row_group_size=ROWS_PER_GROUP)
    return {category: (int(d), int(t), int(n)) for category, (d, t, n) in counts.items()}


class _Parts:
    """Tokenised parts, each read when first asked for."""

    def __init__(self, tokenised_url: str) -> None:
        self._url = tokenised_url
        self._parts: dict[int, pa.Table] = {}

    def read(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of a document."""
        if document.file not in self._parts:
            self._parts[document.file] = read_parquet(part_url(self._url, document.file)).combine_chunks()
        part = self._parts[document.file]
        tokens, trained = (
            part[name][document.position].values.to_numpy(zero_copy_only=False) for name in ("tokens", "trained")
        )
        return _taken(tokens, document), _taken(trained, document)


def _taken(values: np.ndarray, document: Document) -> np.ndarray:
    head, start = document.head, document.start
    rest = values[start : start + document.length - head]
    return np.concatenate([values[:head], rest]) if head else rest
