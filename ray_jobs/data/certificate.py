"""Proof, on some rows, that packing has neither mixed documents nor cut them elsewhere than was decided.

Rows drawn by the seed are read back from their shards, as training will read them, and each of their documents from the
tokenised part, line by line and not in the way that the shards were written. Both must be equal, token by token and
mask by mask. What is kept is each document's place in the row, where it comes from, and the hash that both have:
whoever has the two directories can do it again. That no token sees another document is for the model to show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from fsspec.core import url_to_fs

from ray_jobs.data.packed_rows import PackedRow, PackedRows
from ray_jobs.data.parquet_files import part_url
from ray_jobs.data.shards import ORDERED_SCHEMA, Documents

ROWS_SAMPLED = 8


def sample_rows(num_rows: int, seed: int) -> np.ndarray:
    """Numbers of the rows to prove, rising; all of them where there are few."""
    rows = np.random.default_rng(seed).choice(num_rows, min(ROWS_SAMPLED, num_rows), replace=False)
    return np.sort(rows)


@ray.remote  # type: ignore[untyped-decorator]
def certify_rows(
    rows_url: str, numbers: Sequence[int], documents: Sequence[Documents], categories: Sequence[str], tokenised_url: str
) -> list[dict[str, Any]]:
    """Compare rows with what they were made of.

    Args:
        rows_url: directory of shards.
        numbers: of the rows to compare.
        documents: what each should hold, in order.
        categories: names.
        tokenised_url: directory of the tokenised parts.

    Returns:
        For each row: `row`, and `documents`: `begin` and `end` in the row, `part` and `position` in the corpus, `head`
        and `start` (as in `cutting.Piece`), `is_whole`, and `sha256` of tokens (int32) and mask (a byte a token).

    Raises:
        AssertionError: a row holds something else.
    """
    rows = PackedRows(rows_url)
    lines = []
    for number, expected in zip(numbers, documents, strict=True):
        row, name = rows[number], f"row {number} of {rows_url}"
        lengths, names = expected.length.tolist(), [categories[code] for code in expected.category]
        if row.document_lengths.tolist() != lengths or list(row.document_categories) != names:
            raise AssertionError(f"{name} should have documents of {lengths} tokens, {names}; it has {row}")
        lines.append({"row": int(number), "documents": _certify_documents(row, name, expected, tokenised_url)})
    return lines


def _certify_documents(row: PackedRow, name: str, documents: Documents, tokenised_url: str) -> list[dict[str, Any]]:
    ends = np.cumsum(row.document_lengths).tolist()
    lines = []
    for part, position, head, start, length, end in zip(
        *(column.tolist() for column in documents[:5]), ends, strict=True
    ):
        whole = _read_tokenised(part_url(tokenised_url, part), position)
        source = [np.concatenate([values[:head], values[start : start + length - head]]) for values in whole]
        if (digest := _hash(source)) != _hash([row.tokens[end - length : end], row.trained[end - length : end]]):
            raise AssertionError(f"tokens {end - length} to {end} of {name} are not those of part {part}, {position}")
        line = {"begin": end - length, "end": end, "part": part, "position": position, "head": head, "start": start}
        lines.append({**line, "is_whole": length == len(whole[0]), "sha256": digest})
    return lines


def _read_tokenised(url: str, position: int) -> list[np.ndarray]:
    """Tokens and mask of a conversation."""
    filesystem, path = url_to_fs(url)
    with filesystem.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
        group = 0
        while position >= (size := file.metadata.row_group(group).num_rows):
            position, group = position - size, group + 1
        [line] = file.read_row_group(group, columns=ORDERED_SCHEMA.names).slice(position, 1).to_pylist()
    return [np.array(line["tokens"], dtype=np.int32), np.array(line["trained"], dtype=bool)]


def _hash(arrays: Sequence[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
