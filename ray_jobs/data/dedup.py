"""Which conversations to keep: exact duplicates by content hash, near ones by bands and exact verification.

Works on keys alone; the text of candidates is asked for when pairs must be verified. Duplicates form clusters: two
conversations are in one if a chain of pairs connects them that share a band and are near, or are equal. Of each cluster
the preferred conversation stays.

Clusters grow in two rounds, so that N conversations that are all near cost about N comparisons, not N^2: first each
member of a bucket (the conversations with one band in common) is compared with its neighbour; then the pairs of a
bucket that are not in one cluster yet.

Shapes: N conversations, C candidates, P pairs, D dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ray_jobs.data.bands import Buckets, Candidates

_PAIRS_AT_ONCE = 1 << 20
"""Pairs verified before clusters are joined. The driver holds so many, and those of one band that lie as far apart."""
_FARTHEST = 64
"""How far apart in a bucket, in order of index, two conversations of different clusters may lie to be compared. Buckets
of more than that, of conversations that are not near, come of bands that say nothing, such as those of a common
heading; to compare all with all would take a day for a bucket of 400,000."""

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Exact similarity of pairs of candidates, by their places among the candidates: int64 [P] twice to float64 [P]."""


@dataclass(frozen=True)
class Duplicates:
    """The dropped conversations, in order of index.

    Attributes:
        dropped_D: their indices.
        kept_D: index of the cluster's kept one.
        is_exact_D: whether the same content stays, or was dropped before.
        similarity_D: exact one with the kept; below the threshold where only a chain of others connects the two.
    """

    dropped_D: np.ndarray
    kept_D: np.ndarray
    is_exact_D: np.ndarray
    similarity_D: np.ndarray


def find_duplicates(
    candidates: Candidates, similarity: Similarity, threshold: float, preference_N: np.ndarray
) -> Duplicates:
    """All conversations to drop.

    Args:
        candidates: of N conversations.
        similarity: of the candidates.
        threshold: at which two conversations count as one.
        preference_N: of a cluster the conversation with the highest stays, of several the earliest.
    """
    label_N = np.arange(len(candidates.first_copy_N))
    label_N[candidates.indices_C] = candidates.indices_C[_clusters(candidates, similarity, threshold)]
    label_N = label_N[candidates.first_copy_N]

    order = np.lexsort((np.arange(len(label_N)), -preference_N, label_N))
    is_best = np.ones(len(order), dtype=bool)
    is_best[1:] = label_N[order][1:] != label_N[order][:-1]
    kept_N = np.empty_like(label_N)
    kept_N[order] = order[is_best][np.cumsum(is_best) - 1]

    dropped_D = np.flatnonzero(kept_N != np.arange(len(kept_N)))
    kept_D = kept_N[dropped_D]
    content_D, kept_content_D = candidates.first_copy_N[dropped_D], candidates.first_copy_N[kept_D]
    is_copy_D = content_D == kept_content_D
    similarity_D = np.ones(len(dropped_D))
    places = [np.searchsorted(candidates.indices_C, content[~is_copy_D]) for content in (content_D, kept_content_D)]
    similarity_D[~is_copy_D] = similarity(*places)
    return Duplicates(dropped_D, kept_D, is_copy_D | (content_D != dropped_D), similarity_D)


def _clusters(candidates: Candidates, similarity: Similarity, threshold: float) -> np.ndarray:
    """The lowest place of each candidate's cluster."""
    size = len(candidates.indices_C)
    label_C = np.arange(size)

    def join(pairs: np.ndarray) -> None:
        nonlocal label_C
        first_P, second_P = np.divmod(pairs, size)
        near = similarity(first_P, second_P) >= threshold
        label_C = _join(label_C, first_P[near], second_P[near])

    for pairs in _neighbours(candidates, size):
        join(pairs)
    for pairs in _pairs_across(candidates, size, lambda: label_C):
        join(pairs[~_are_neighbours(candidates, pairs, size)])
    return label_C


def _neighbours(candidates: Candidates, size: int) -> Iterator[np.ndarray]:
    """All pairs of neighbours in a bucket, each once, in order of their number (`_pairs_at`).

    Yielded are those of one range of lower places after another, and for each range all bands are gone through again.
    """
    if not size:
        return
    count_C = np.zeros(size, dtype=np.int64)
    for members, bucket in candidates.bands:
        count_C += np.bincount(members[:-1][bucket[1:] == bucket[:-1]], minlength=size)
    range_C = (np.cumsum(count_C) - count_C) // _PAIRS_AT_ONCE
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(range_C)) + 1).tolist(), size]):
        pairs = []
        for members, bucket in candidates.bands:
            numbers = _pairs_at(members, bucket, 1, size)
            pairs.append(numbers[(numbers >= start * size) & (numbers < stop * size)])
        yield np.unique(np.concatenate(pairs))


def _are_neighbours(candidates: Candidates, pairs: np.ndarray, size: int) -> np.ndarray:
    """Whether pairs are neighbours in a bucket of any band, and so have been compared."""
    first_P, second_P = np.divmod(pairs, size)
    found_P = np.zeros(len(pairs), dtype=bool)
    for members, bucket in candidates.bands:
        next_C = np.arange(size)
        together = bucket[1:] == bucket[:-1]
        next_C[members[:-1][together]] = members[1:][together]
        found_P |= next_C[first_P] == second_P
    return found_P


def _pairs_across(candidates: Candidates, size: int, labels: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """Pairs that lie further apart in a bucket and, when they are yielded, in different clusters."""
    pending: list[np.ndarray] = []

    def flush() -> np.ndarray:
        pairs = np.unique(np.concatenate(pending))
        pending.clear()
        return pairs

    for all_members, all_buckets in candidates.bands:
        members, bucket = _of_several_clusters(all_members, all_buckets, labels())
        distance = 2
        while distance <= _FARTHEST and len(pairs := _pairs_at(members, bucket, distance, size)):
            first_P, second_P = np.divmod(pairs, size)
            pending.append(pairs[labels()[first_P] != labels()[second_P]])
            distance += 1
            if sum(map(len, pending)) >= _PAIRS_AT_ONCE:
                yield flush()
    if pending:
        yield flush()


def _of_several_clusters(members: np.ndarray, bucket: np.ndarray, label_C: np.ndarray) -> Buckets:
    """Members of the buckets that hold more than one cluster."""
    if not len(members):
        return members, bucket
    number = np.cumsum(np.concatenate([[0], bucket[1:] != bucket[:-1]]))
    starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
    label = label_C[members]
    is_mixed = np.maximum.reduceat(label, starts) != np.minimum.reduceat(label, starts)
    return members[is_mixed[number]], bucket[is_mixed[number]]


def _pairs_at(members: np.ndarray, bucket: np.ndarray, distance: int, size: int) -> np.ndarray:
    """Pairs of a bucket that lie so far apart in it, each as one number: lower place x size + higher place."""
    together = bucket[distance:] == bucket[:-distance]
    lower, higher = members[:-distance][together].astype(np.int64), members[distance:][together].astype(np.int64)
    pairs: np.ndarray = lower * size + higher
    return pairs


def _join(label_C: np.ndarray, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
    """The labels after joining the clusters of each pair; a cluster's label is its lowest member."""
    label_C = label_C.copy()
    while True:
        one, other = label_C[first_P], label_C[second_P]
        apart = one != other
        if not apart.any():
            return label_C
        np.minimum.at(label_C, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while not np.array_equal(shorter := label_C[label_C], label_C):
            label_C = shorter
