"""Finding a corpus's duplicates, and telling of them.

The driver holds hashes, lengths and the buckets of shared bands (`ray_jobs.data.band_shuffle`), 70 bytes a conversation
and 8 a member. Text and signatures stay where they are: pairs of candidates are verified by Ray tasks that read the two
texts of each pair. What was dropped is written as a receipt, one line a row with its twin.

Shapes: N conversations, P pairs, D dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ray_jobs.data import band_shuffle
from ray_jobs.data.bands import Candidates, Contents
from ray_jobs.data.dedup import Duplicates, find_duplicates
from ray_jobs.data.minhash import ShingleSets, bands_and_rows, keys_of_minima
from ray_jobs.data.other_thresholds import ThresholdEstimate
from ray_jobs.data.parquet_files import Lines, parquet_writer, read_lines
from ray_jobs.data.tasks import CONVERSATIONS, compared_text, read_conversations, read_signatures
from service.spec.data import DedupSpec

RECEIPT_FILE = "duplicates.parquet"
RECEIPT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("thread", pa.int32()),
        ("kept_source", pa.string()),
        ("kept_file", pa.string()),
        ("kept_row", pa.int64()),
        ("kept_thread", pa.int32()),
        ("kind", pa.string()),
        ("similarity", pa.float64()),
    ]
)
_SAMPLE_SIZE = 1000
"""Conversations compared all with all: half a million pairs, a second."""
_PAIRS_PER_TASK = 50_000
"""At most twice as many texts are in a task's memory: of 2 kB each 200 MB."""


@dataclass(frozen=True)
class Rows:
    """Where N conversations lie, and what deduplication knows of them.

    Attributes:
        lines: of their files' parts; all else is in this order.
        row_N: line in the raw file.
        thread_N: of several in that row.
        source_N: number of the source.
        is_spared_N: of which only copies are to go.
        content_hashes: uint64 [N, 2].
        completion_chars_N: length of the replies.
    """

    lines: Lines
    row_N: np.ndarray
    thread_N: np.ndarray
    source_N: np.ndarray
    is_spared_N: np.ndarray
    content_hashes: np.ndarray
    completion_chars_N: np.ndarray

    @classmethod
    def of(cls, keys: pa.Table, source_N: np.ndarray, is_spared_N: np.ndarray) -> Rows:
        """Of a table of `KEY_SCHEMA`, in its order.

        Args:
            keys: of conversations, no other rows.
            source_N: number of the source of each.
            is_spared_N: of which only copies are to go.
        """
        hashes = np.frombuffer(b"".join(keys["content_hash"].to_pylist()), dtype=np.uint64)
        return cls(
            Lines(keys["file"].to_numpy(), keys["position"].to_numpy()),
            keys["row"].to_numpy(),
            keys["thread"].to_numpy(),
            source_N,
            is_spared_N,
            hashes.reshape(-1, 2),
            keys["completion_chars"].to_numpy(),
        )

    def __len__(self) -> int:
        """N."""
        return len(self.row_N)


class DuplicateSearch:
    """The search through one corpus, and what it saw on the way.

    Args:
        spec: what counts as a duplicate.
        rows: all conversations.
        corpus_url: whose conversation and signature parts to read.
    """

    def __init__(self, spec: DedupSpec, rows: Rows, corpus_url: str) -> None:
        self._spec, self._rows, self._url = spec, rows, corpus_url
        self._contents = Contents.of(rows.content_hashes, rows.is_spared_N)
        self._num_verified, self._num_near, self._num_expected = 0, 0, 0.0

    def run(self) -> Duplicates:
        """Find all duplicates; Ray is connected."""
        lines = self._rows.lines.take(self._contents.searched_M)
        bands = band_shuffle.shared_bands(lines, self._spec, self._url, band_shuffle.KEYS_PER_TASK)
        candidates = Candidates.of(self._contents, bands)

        def similarity(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
            return self._similarity(candidates.indices_C[first_P], candidates.indices_C[second_P])

        # of two with equal preference the earlier source's stays, since rows are sorted by source
        longest_first = self._spec.keep == "longest_completion"
        preference_N = self._rows.completion_chars_N if longest_first else -self._rows.source_N
        return find_duplicates(candidates, similarity, self._spec.threshold, preference_N)

    def _similarity(self, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        """Of pairs of conversations, by their indices."""
        pending = []
        for start in range(0, len(first_P), _PAIRS_PER_TASK):
            indices = np.stack([pairs[start : start + _PAIRS_PER_TASK] for pairs in (first_P, second_P)])
            involved, places = np.unique(indices, return_inverse=True)
            lines = self._rows.lines.take(involved)
            pending.append(_similarity_task.remote(lines, places.reshape(2, -1), self._spec, self._url))
        similarity_P = np.concatenate([np.empty(0), *ray.get(pending)])
        self._count(similarity_P)
        return similarity_P

    def _count(self, similarity_P: np.ndarray) -> None:
        """Note how well the bands did.

        A pair of similarity s shares a band with probability p(s) = 1 - (1 - s^r)^b, so each near pair that was found
        stands for 1 / p(s) that there are (Horvitz and Thompson 1952), and the share found is n / sum of 1 / p(s).
        """
        num_bands, num_rows = bands_and_rows(self._spec)
        near_P = similarity_P[similarity_P >= self._spec.threshold]
        self._num_verified += len(similarity_P)
        self._num_near += len(near_P)
        self._num_expected += float((1 / (1 - (1 - near_P**num_rows) ** num_bands)).sum())

    def describe(self, duplicates: Duplicates, sources: list[str]) -> dict[str, Any]:
        """What the manifest tells of the search.

        Args:
            duplicates: what `run` found.
            sources: names of all sources.
        """
        rows, searched_M = self._rows, self._contents.searched_M
        order_M = np.argsort(rows.content_hashes[searched_M, 0], kind="stable")  # a random one, the same each time
        chosen = np.sort(searched_M[order_M[:_SAMPLE_SIZE]])
        sample = _sample_task.remote(rows.lines.take(chosen), self._spec, self._url)
        thresholds = ThresholdEstimate(rows.lines.take(searched_M), order_M, self._contents.num_copies, self._url)
        pairs = zip(
            rows.source_N[duplicates.dropped_D].tolist(),
            rows.source_N[duplicates.kept_D].tolist(),
            duplicates.is_exact_D.tolist(),
            strict=True,
        )
        counts = Counter(pairs)
        return {
            "clusters": len(np.unique(duplicates.kept_D)),
            "between_sources": [
                {
                    "dropped_source": sources[dropped],
                    "kept_source": sources[kept],
                    "exact_duplicates": counts[dropped, kept, True],
                    "near_duplicates": counts[dropped, kept, False],
                }
                for dropped, kept in sorted({(dropped, kept) for dropped, kept, _ in counts})
            ],
            "banding": self._banding(ray.get(sample)),
            "thresholds": thresholds.result(),
            "receipt_url": f"{self._url}/{RECEIPT_FILE}",
        }

    def _banding(self, sample: dict[str, int]) -> dict[str, Any]:
        num_bands, num_rows = bands_and_rows(self._spec)
        return {
            "bands": num_bands,
            "rows_per_band": num_rows,
            "pairs_verified": self._num_verified,
            "precision": self._num_near / self._num_verified if self._num_verified else None,
            "estimated_recall": self._num_near / self._num_expected if self._num_near else None,
            "sample": sample,
        }

    def write_receipt(self, duplicates: Duplicates, sources: list[str], files: list[str]) -> None:
        """One line for each dropped row: itself, its twin that was kept, how alike they are.

        Args:
            duplicates: what `run` found.
            sources: names of all sources.
            files: names of all files, without their folders: where the data lies is not part of a corpus.
        """
        rows = self._rows
        source_names, file_names = np.array(sources, dtype=object), np.array(files, dtype=object)
        columns: list[Any] = []
        for indices in (duplicates.dropped_D, duplicates.kept_D):
            columns += [source_names[rows.source_N[indices]], file_names[rows.lines.file[indices]]]
            columns += [rows.row_N[indices], rows.thread_N[indices]]
        columns += [np.where(duplicates.is_exact_D, "exact", "near"), duplicates.similarity_D]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, RECEIPT_SCHEMA, strict=True)]
        with parquet_writer(f"{self._url}/{RECEIPT_FILE}", RECEIPT_SCHEMA) as writer:
            writer.write_table(pa.table(arrays, schema=RECEIPT_SCHEMA))


@ray.remote  # type: ignore[untyped-decorator]
def _similarity_task(lines: Lines, pairs: np.ndarray, spec: DedupSpec, corpus_url: str) -> np.ndarray:
    """Similarity of pairs of some conversations, given by places among them, int64 [2, P]."""
    if spec.verify == "estimate":
        minima = np.concatenate(list(read_signatures(lines, corpus_url)))
        return np.asarray((minima[pairs[0]] == minima[pairs[1]]).mean(axis=1))
    return _shingle_sets(lines, spec, corpus_url).jaccard(pairs[0], pairs[1])


def _shingle_sets(lines: Lines, spec: DedupSpec, corpus_url: str) -> ShingleSets:
    texts = [
        compared_text(conversation, spec)
        for part in read_lines(lines, f"{corpus_url}/{CONVERSATIONS}")
        for conversation in read_conversations(part)
    ]
    return ShingleSets.of(texts, spec.shingle_words)


@ray.remote  # type: ignore[untyped-decorator]
def _sample_task(lines: Lines, spec: DedupSpec, corpus_url: str) -> dict[str, int]:
    """All pairs of some contents by exact similarity: how many are near, and how many of those share a band."""
    first_P, second_P = np.triu_indices(len(lines.file), 1)
    counts = {"conversations": len(lines.file), "near_pairs": 0, "found": 0}
    if not len(first_P):
        return counts
    near = _shingle_sets(lines, spec, corpus_url).jaccard(first_P, second_P) >= spec.threshold
    keys = keys_of_minima(np.concatenate(list(read_signatures(lines, corpus_url))), *bands_and_rows(spec))
    found = (keys[first_P[near]] == keys[second_P[near]]).any(axis=1)
    return counts | {"near_pairs": int(near.sum()), "found": int(found.sum())}
