"""Writing one set of packed rows, for training or held out: which document goes where, and the tasks that move it.

    packed-<hash>/<name>/shard-<n>.parquet          the rows
    packed-<hash>/<name>/shard-<n>.json             what lies in them: it makes the shard whole
    packed-<hash>/ordered/<name>/batch-<n>.arrow    their documents on the way (`ray_jobs.data.shards`)

The driver holds some 60 bytes a document, and no token. A run that was killed goes on with the files that are there.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from fsspec.core import url_to_fs

from ray_jobs.data.certificate import certify_rows, sample_rows
from ray_jobs.data.corpus_builder import ProgressCallback
from ray_jobs.data.packed_rows import ROWS_PER_GROUP
from ray_jobs.data.packing import Packing, lower_bound, pack
from ray_jobs.data.packing_report import Written
from ray_jobs.data.shards import Documents, Shard, ShardRecord, find_shard, order_batch, write_shard

BATCH_TOKENS = 2**25
SHARD_TOKENS = 2**25
"""Bounds of a task's memory, which `ray_jobs.data.shards` states; a shard of 2**25 tokens has some 60 MB. They decide
what the files hold, so whoever changes them raises the version in `ray_jobs.data.prepare`."""
ORDERED = "ordered"


class RowSetWriter:
    """Packs documents and writes their rows.

    Args:
        tokenised_url: directory of the tokenised parts.
        url: of the packed data.
        row_length: tokens that fit a row.
        categories: names.
        progress: told how far it is.
    """

    def __init__(
        self, tokenised_url: str, url: str, row_length: int, categories: list[str], progress: ProgressCallback
    ) -> None:
        self._tokenised_url, self._url, self._row_length = tokenised_url, url, row_length
        self._categories, self._progress = categories, progress

    def write(self, documents: Documents, name: str, seed: int) -> Written:
        """Pack the documents, write their rows, an empty shard where there are none, and prove some.

        Args:
            documents: in an order that decides between equal lengths.
            name: of the set.
            seed: decides which rows are proved.
        """
        packing = pack(documents.length, self._row_length)
        placed = documents.take(packing.documents)
        records = self._write_shards(placed, packing, name)
        written, tokens, trained = (Counter[str]() for _ in range(3))
        for record in records:
            written.update(record.documents)
            tokens.update(record.tokens)
            trained.update(record.trained_tokens)
        for what, came_out, went_in in (
            ("rows", sum(record.rows for record in records), len(packing)),
            ("documents", written.total(), len(documents.length)),
            ("tokens", tokens.total(), int(documents.length.sum())),
        ):
            if came_out != went_in:
                raise AssertionError(f"{went_in} {what} went into {name}, {came_out} came out")
        shards = [
            {"file": f"{name}/{_shard_name(number)}", "rows": r.rows, "bytes": r.num_bytes, "sha256": r.sha256}
            for number, r in enumerate(records)
        ]
        bound = lower_bound(documents.length, self._row_length)
        samples = self._certify(placed, packing, name, seed)
        return Written(len(packing), len(documents.length), bound, written, tokens, trained, shards, samples)

    def _write_shards(self, placed: Documents, packing: Packing, name: str) -> list[ShardRecord]:
        """Write what is not there; `placed` are the documents as they follow each other in the rows."""
        row_borders = np.append(np.arange(0, len(packing) or 1, _rows_per_shard(self._row_length)), len(packing))
        urls = [f"{self._url}/{name}/{_shard_name(number)}" for number in range(len(row_borders) - 1)]
        records = dict(enumerate(ray.get([find_shard.remote(url) for url in urls])))
        missing = [number for number, record in records.items() if record is None]
        if missing:
            batch_of = _batches(placed)
            ordered_urls = self._order(placed, batch_of, packing.borders[row_borders], name)
        pending = []
        for number in missing:
            borders = packing.borders[row_borders[number] : row_borders[number + 1] + 1]
            here = slice(borders[0], borders[-1])
            shard = Shard(batch_of[here], placed.length[here], placed.category[here], borders - borders[0])
            pending.append(write_shard.remote(shard, number, ordered_urls, urls[number], self._categories))
        for done, (number, result) in enumerate(zip(missing, pending, strict=True), len(urls) - len(missing) + 1):
            records[number] = ray.get(result)
            self._progress(f"pack {name.replace('_', '-')}", done, len(urls), "shards")
        return list(records.values())

    def _order(self, placed: Documents, batch_of: np.ndarray, shard_borders: np.ndarray, name: str) -> list[str]:
        """Write all batches, each ordered by shard; returns their files."""
        urls, pending = [], []
        by_batch = np.argsort(batch_of, kind="stable")
        for number, mine in enumerate(np.split(by_batch, np.flatnonzero(np.diff(batch_of[by_batch])) + 1)):
            if len(mine):
                urls.append(f"{self._url}/{ORDERED}/{name}/batch-{number:05d}.arrow")
                borders = np.searchsorted(mine, shard_borders)
                pending.append(order_batch.remote(placed.take(mine), borders, self._tokenised_url, urls[-1]))
        for done, result in enumerate(pending, 1):
            ray.get(result)
            self._progress(f"order {name.replace('_', '-')}", done, len(urls), "batches")
        return urls

    def _certify(self, placed: Documents, packing: Packing, name: str, seed: int) -> list[dict[str, Any]]:
        numbers = sample_rows(len(packing), seed)
        expected = [placed.take(np.arange(packing.borders[n], packing.borders[n + 1])) for n in numbers]
        url = f"{self._url}/{name}"
        task = certify_rows.remote(url, numbers, expected, self._categories, self._tokenised_url)
        samples: list[dict[str, Any]] = ray.get(task)
        return samples


def remove_ordered(url: str) -> None:
    """Remove the documents on their way; the manifest is there already, so whoever misses them finds that.

    Args:
        url: of the packed data.
    """
    filesystem, path = url_to_fs(f"{url}/{ORDERED}")
    with suppress(OSError):  # another job writes there, and will remove it
        filesystem.rm(path, recursive=True)


def _batches(placed: Documents) -> np.ndarray:
    """Each document's batch, int32: documents that follow each other in the parts, up to `BATCH_TOKENS`."""
    by_source = np.lexsort((placed.position, placed.file))
    ends = np.cumsum(placed.length[by_source], dtype=np.int64)
    batch_of = np.empty(len(ends), dtype=np.int32)
    # numbers without a gap, though a document may be longer than a batch
    batch_of[by_source] = np.unique((ends - 1) // BATCH_TOKENS, return_inverse=True)[1]
    return batch_of


def _rows_per_shard(row_length: int) -> int:
    """Whole row groups of at most `SHARD_TOKENS`, but one at least."""
    return max(1, SHARD_TOKENS // row_length // ROWS_PER_GROUP) * ROWS_PER_GROUP


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.parquet"
