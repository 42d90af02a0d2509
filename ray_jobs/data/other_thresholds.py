"""How many rows other thresholds would drop, estimated from signatures and a sample.

A row counts as dropped at a threshold if it is a copy of an earlier one, or if an earlier one that shares a band with
it has at least so large a share of equal minima. Copies are counted; the others are estimated from the contents with
the smallest hashes, a random choice: the similarity of the nearest earlier content decides for all thresholds at once.

Deduplication itself drops of a cluster all but one. Where two rows of a cluster are near a later one but not each
other, it drops one of them, too, which is not counted here (`docs/benchmarks/dedup.md` has figures).
Rejected: clusters for each threshold, which needs the bands of the lowest one shuffled, and the driver to hold them: 41
bands of 3, where the search at 0.7 has 25 of 5.

Shapes: M contents, S of them in the sample, B bands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import ray

from ray_jobs.data.bands import entries_of, place_bits
from ray_jobs.data.minhash import bands_and_rows, keys_of_minima
from ray_jobs.data.parquet_files import Lines
from ray_jobs.data.tasks import read_signatures
from service.spec.data import DedupSpec

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SAMPLE_SIZE = 20_000
"""S at most: a tenth of the contents that is near an earlier one is found to a fiftieth of itself."""
CONTENTS_PER_TASK = 2**17
"""Each task holds their signatures while it joins them twice, 1000 bytes at 125 minima, and 330 of keys: 175 MB."""
_FARTHEST = 16
"""Earlier contents, of those that one task reads and that share a band, to compare one of the sample with: the nearest
in order. Bounds what a heading in common to all costs."""


class Sample(NamedTuple):
    """Some contents.

    Attributes:
        place_S: int64 [S], sorted.
        minima: uint32 [S, minima].
    """

    place_S: np.ndarray
    minima: np.ndarray


class ThresholdEstimate:
    """Starts tasks beside which other work may go on; Ray is connected.

    Args:
        lines_M: where the contents lie.
        order_M: the contents in order of hash.
        num_copies: rows that are copies, at every threshold.
        corpus_url: whose signature parts to read.
    """

    def __init__(self, lines_M: Lines, order_M: np.ndarray, num_copies: int, corpus_url: str) -> None:
        self._size, self._num_copies = len(lines_M.file), num_copies
        sample_S = np.sort(order_M[:SAMPLE_SIZE])
        self._sample_size = len(sample_S)
        self._pending: list[ray.ObjectRef] = []
        if not self._size:
            return
        sample = _read_sample.remote(lines_M.take(sample_S), sample_S, corpus_url)
        for start in range(0, self._size, CONTENTS_PER_TASK):
            mine = lines_M.take(slice(start, start + CONTENTS_PER_TASK))
            self._pending.append(_nearest_task.remote(mine, start, self._size, sample, corpus_url))

    def result(self) -> list[dict[str, Any]]:
        """For each of `THRESHOLDS` the rows dropped, and the standard error that the sample leaves."""
        nearest_S = np.zeros(self._sample_size)
        for some in self._pending:
            np.maximum(nearest_S, ray.get(some), out=nearest_S)
        return [{"threshold": threshold, **self._at(nearest_S >= threshold)} for threshold in THRESHOLDS]

    def _at(self, is_dropped_S: np.ndarray) -> dict[str, int]:
        share = float(is_dropped_S.mean()) if self._sample_size else 0.0
        unseen = 1 - self._sample_size / self._size if self._size else 0.0
        error = self._size * (share * (1 - share) * unseen / max(1, self._sample_size)) ** 0.5
        return {"estimated_dropped": self._num_copies + round(share * self._size), "standard_error": round(error)}


def nearest_before(minima: np.ndarray, first_place: int, size: int, sample: Sample) -> np.ndarray:
    """Largest share of equal minima of each of a sample with earlier contents that share a band: float64 [S].

    0 where none does. The bands are those of the lowest threshold.

    Args:
        minima: uint32 [n, minima], of contents that follow each other.
        first_place: the first one's place.
        size: M.
        sample: of any places.
    """
    bands = bands_and_rows(DedupSpec(threshold=THRESHOLDS[0], num_permutations=minima.shape[1]))
    num_bits = place_bits(size)
    mask = (np.uint64(1) << num_bits) - np.uint64(1)
    nearest_S = np.zeros(len(sample.place_S))
    keys_of_sample = keys_of_minima(sample.minima, *bands).T
    for keys, keys_S in zip(keys_of_minima(minima, *bands).T, keys_of_sample, strict=True):
        entries = np.sort(entries_of(keys, first_place, size))
        entry_S = (entries_of(keys_S, 0, size) & ~mask) | sample.place_S.astype(np.uint64)
        at_S = np.searchsorted(entries, entry_S)
        open_S = np.arange(len(sample.place_S))
        for distance in range(1, _FARTHEST + 1):
            open_S = open_S[(at_S[open_S] >= distance) & (nearest_S[open_S] < THRESHOLDS[-1])]
            before = entries[at_S[open_S] - distance]
            is_shared = before >> num_bits == entry_S[open_S] >> num_bits
            open_S, before = open_S[is_shared], before[is_shared]
            if not len(open_S):
                break
            places = (before & mask).astype(np.int64) - first_place
            similarity = (minima[places] == sample.minima[open_S]).mean(axis=1)
            nearest_S[open_S] = np.maximum(nearest_S[open_S], similarity)
    return nearest_S


@ray.remote  # type: ignore[untyped-decorator]
def _read_sample(lines: Lines, place_S: np.ndarray, corpus_url: str) -> Sample:
    return Sample(place_S, np.concatenate(list(read_signatures(lines, corpus_url))))


@ray.remote  # type: ignore[untyped-decorator]
def _nearest_task(lines: Lines, first_place: int, size: int, sample: Sample, corpus_url: str) -> np.ndarray:
    minima = np.concatenate(list(read_signatures(lines, corpus_url)))
    return nearest_before(minima, first_place, size, sample)
