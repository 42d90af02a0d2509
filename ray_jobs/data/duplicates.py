"""Finding a corpus's duplicates, and telling of them.

The driver holds keys: hashes, band keys, lengths. Text stays where it is: pairs of candidates are verified by Ray tasks
that read the two texts of each pair. What was dropped is written as a receipt, one line a row with its twin.

Shapes: N conversations, P pairs, D dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from fsspec.core import url_to_fs

from ray_jobs.data.dedup import Duplicates, find_candidates, find_duplicates
from ray_jobs.data.minhash import ShingleSets, bands_and_rows, keys_of_minima
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_parquet
from ray_jobs.data.tasks import CONVERSATIONS, SIGNATURES, compared_text, read_conversations
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
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_SAMPLE_SIZE = 1000
"""Conversations compared all with all: half a million pairs, a second."""
_PAIRS_PER_TASK = 50_000
"""At most twice as many texts are in a task's memory: of 2 kB each 200 MB."""


@dataclass(frozen=True)
class Rows:
    """Where N conversations lie, and what deduplication knows of them.

    Attributes:
        file_N: number of the file; the conversations are sorted by it.
        position_N: line in the file's part.
        row_N: line in the raw file.
        thread_N: of several in that row.
        source_N: number of the source.
        content_hashes: uint64 [N, 2].
        band_keys: uint64 [N, bands].
        completion_chars_N: length of the replies.
    """

    file_N: np.ndarray
    position_N: np.ndarray
    row_N: np.ndarray
    thread_N: np.ndarray
    source_N: np.ndarray
    content_hashes: np.ndarray
    band_keys: np.ndarray
    completion_chars_N: np.ndarray

    @classmethod
    def of(cls, keys: pa.Table, source_N: np.ndarray) -> Rows:
        """Of a table of `KEY_SCHEMA`, in its order.

        Args:
            keys: of conversations, no other rows.
            source_N: number of the source of each.
        """
        hashes = np.frombuffer(b"".join(keys["content_hash"].to_pylist()), dtype=np.uint64)
        bands = np.frombuffer(b"".join(keys["band_keys"].to_pylist()), dtype=np.uint64)
        return cls(
            keys["file"].to_numpy(),
            keys["position"].to_numpy(),
            keys["row"].to_numpy(),
            keys["thread"].to_numpy(),
            source_N,
            hashes.reshape(-1, 2),
            bands.reshape(len(keys), -1),
            keys["completion_chars"].to_numpy(),
        )

    def __len__(self) -> int:
        """N."""
        return len(self.file_N)


class DuplicateSearch:
    """The search through one corpus, and what it saw on the way.

    Args:
        spec: what counts as a duplicate.
        rows: all conversations.
        corpus_url: whose conversation and signature parts to read.
    """

    def __init__(self, spec: DedupSpec, rows: Rows, corpus_url: str) -> None:
        self._spec, self._rows, self._url = spec, rows, corpus_url
        self._verified: list[np.ndarray] = []

    def run(self) -> Duplicates:
        """Find all duplicates; Ray is connected."""
        candidates = find_candidates(self._rows.content_hashes, self._rows.band_keys)

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
            where = self._rows.file_N[involved], self._rows.position_N[involved]
            pending.append(_similarity_task.remote(*where, places.reshape(2, -1), self._spec, self._url))
        similarity_P = np.concatenate([np.empty(0), *ray.get(pending)])
        self._verified.append(similarity_P)
        return similarity_P

    def describe(self, duplicates: Duplicates, sources: list[str]) -> dict[str, Any]:
        """What the manifest tells of the search.

        Args:
            duplicates: what `run` found.
            sources: names of all sources.
        """
        rows = self._rows
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
            "banding": self._banding(),
            "thresholds": self._thresholds(),
            "receipt_url": f"{self._url}/{RECEIPT_FILE}",
        }

    def _banding(self) -> dict[str, Any]:
        """How well the bands did, from the pairs that were verified.

        A pair of similarity s shares a band with probability p(s) = 1 - (1 - s^r)^b, so each near pair that was found
        stands for 1 / p(s) that there are (Horvitz and Thompson 1952), and the share found is n / sum of 1 / p(s).
        """
        num_bands, num_rows = bands_and_rows(self._spec)
        similarity_P = np.concatenate([np.empty(0), *self._verified])
        near_P = similarity_P[similarity_P >= self._spec.threshold]
        found_P = 1 - (1 - near_P**num_rows) ** num_bands
        return {
            "bands": num_bands,
            "rows_per_band": num_rows,
            "pairs_verified": len(similarity_P),
            "precision": len(near_P) / len(similarity_P) if len(similarity_P) else None,
            "estimated_recall": len(near_P) / float((1 / found_P).sum()) if len(near_P) else None,
            "sample": self._sample(),
        }

    def _sample(self) -> dict[str, int]:
        """All pairs of some conversations by exact similarity: how many are near, and how many of those share a band.

        The conversations are those with the smallest content hashes: a random choice, the same each time.
        """
        rows = self._rows
        _, first_copies = np.unique(rows.content_hashes[:, 0], return_index=True)
        # one key for all bands: a conversation of which only copies are to go, and that is compared with none
        is_compared = (rows.band_keys[first_copies, :1] != rows.band_keys[first_copies]).any(axis=1)
        chosen = np.sort(first_copies[is_compared][:_SAMPLE_SIZE])
        pairs = np.stack(np.triu_indices(len(chosen), 1))
        if not pairs.size:
            return {"conversations": len(chosen), "near_pairs": 0, "found": 0}
        exact = self._spec.model_copy(update={"verify": "exact"})
        where = rows.file_N[chosen], rows.position_N[chosen]
        similarity_P = ray.get(_similarity_task.remote(*where, pairs, exact, self._url))
        near = pairs[:, similarity_P >= self._spec.threshold]
        keys = rows.band_keys[chosen]
        found = (keys[near[0]] == keys[near[1]]).any(axis=1)
        return {"conversations": len(chosen), "near_pairs": near.shape[1], "found": int(found.sum())}

    def _thresholds(self) -> list[dict[str, Any]]:
        """What other thresholds would have dropped, from the signatures alone."""
        files = np.unique(self._rows.file_N).tolist()
        dropped: list[int] = ray.get(_thresholds_task.remote(files, self._url))
        return [
            {"threshold": threshold, "estimated_dropped": number}
            for threshold, number in zip(THRESHOLDS, dropped, strict=True)
        ]

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
            columns += [source_names[rows.source_N[indices]], file_names[rows.file_N[indices]]]
            columns += [rows.row_N[indices], rows.thread_N[indices]]
        columns += [np.where(duplicates.is_exact_D, "exact", "near"), duplicates.similarity_D]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, RECEIPT_SCHEMA, strict=True)]
        with parquet_writer(f"{self._url}/{RECEIPT_FILE}", RECEIPT_SCHEMA) as writer:
            writer.write_table(pa.table(arrays, schema=RECEIPT_SCHEMA))


@ray.remote  # type: ignore[untyped-decorator]
def _similarity_task(
    file: np.ndarray, position: np.ndarray, pairs: np.ndarray, spec: DedupSpec, corpus_url: str
) -> np.ndarray:
    """Similarity of pairs of some conversations, given by places among them, int64 [2, P]."""
    if spec.verify == "estimate":
        parts = _read_lines(file, position, f"{corpus_url}/{SIGNATURES}")
        signatures = np.concatenate([np.frombuffer(b"".join(part["minima"].to_pylist()), np.uint32) for part in parts])
        minima = signatures.reshape(len(file), -1)
        return np.asarray((minima[pairs[0]] == minima[pairs[1]]).mean(axis=1))
    texts = [
        compared_text(conversation, spec)
        for part in _read_lines(file, position, f"{corpus_url}/{CONVERSATIONS}")
        for conversation in read_conversations(part)
    ]
    return ShingleSets.of(texts, spec.shingle_words).jaccard(pairs[0], pairs[1])


@ray.remote  # type: ignore[untyped-decorator]
def _thresholds_task(files: list[int], corpus_url: str) -> list[int]:
    """Rows that each of `THRESHOLDS` drops; holds all signatures, 500 bytes a conversation at 125 minima."""
    signatures: list[bytes] = []
    for file in files:
        filesystem, path = url_to_fs(part_url(f"{corpus_url}/{SIGNATURES}", file))
        if filesystem.exists(path):
            signatures += read_parquet(part_url(f"{corpus_url}/{SIGNATURES}", file))["minima"].drop_null().to_pylist()
    if not signatures:
        return [0] * len(THRESHOLDS)
    minima = np.frombuffer(b"".join(signatures), dtype=np.uint32).reshape(len(signatures), -1)
    return [dropped_at(threshold, minima) for threshold in THRESHOLDS]


def dropped_at(threshold: float, minima: np.ndarray) -> int:
    """How many of some conversations a threshold drops, by their signatures.

    Args:
        threshold: of the share of equal minima, which estimates the similarity.
        minima: uint32 [N, minima].
    """
    bands = bands_and_rows(DedupSpec(threshold=threshold, num_permutations=minima.shape[1]))
    numbers = np.arange(len(minima), dtype=np.uint64)
    candidates = find_candidates(np.stack([numbers, numbers], 1), keys_of_minima(minima, *bands))

    def similarity(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        pairs = (candidates.indices_C[first_P], candidates.indices_C[second_P])
        chunks = zip(*(np.array_split(indices, len(indices) // 10_000 + 1) for indices in pairs), strict=True)
        return np.concatenate([(minima[one] == minima[other]).mean(axis=1) for one, other in chunks])

    return len(find_duplicates(candidates, similarity, threshold, np.zeros(len(minima))).dropped_D)


def _read_lines(file: np.ndarray, position: np.ndarray, directory_url: str) -> list[pa.Table]:
    """Some lines of the parts, in order of file and position; only the row groups that hold them are read."""
    tables = []
    for number in np.unique(file).tolist():
        wanted = position[file == number]
        filesystem, path = url_to_fs(part_url(directory_url, number))
        with filesystem.open(path, "rb") as stream, pq.ParquetFile(stream) as part:
            sizes = [part.metadata.row_group(group).num_rows for group in range(part.metadata.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            groups = np.unique(np.searchsorted(starts, wanted, side="right") - 1)
            before = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
            table = part.read_row_groups(groups.tolist())
        tables.append(table.take(np.searchsorted(before, wanted)))
    return tables
