"""Which conversations to keep: exact duplicates by content hash, near ones by bands and exact verification.

Works on keys alone; the text of candidates is asked for when a pair must be verified. Duplicates form clusters by
connection; of each the conversation with the longest completion stays, then the earliest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Duplicate:
    """A dropped conversation.

    Attributes:
        dropped: its index.
        kept: index of the cluster's kept one.
        kind: how it was recognised; `exact` where the same content stays or was dropped before.
        similarity: exact one with the kept; below the threshold where only a chain of others connects the two.
    """

    dropped: int
    kept: int
    kind: Literal["exact", "near"]
    similarity: float


class _Clusters:
    """Union-find over indices."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def join(self, first: int, second: int) -> None:
        self._parent[self.root(second)] = self.root(first)


def find_duplicates(
    content_hashes: Sequence[bytes],
    band_keys: np.ndarray,
    completion_lengths: Sequence[int],
    similarity: Callable[[int, int], float],
    threshold: float,
) -> list[Duplicate]:
    """All conversations to drop, in order of index.

    Args:
        content_hashes: of N conversations; equal hashes are exact duplicates.
        band_keys: uint64 [N, bands].
        completion_lengths: what makes a cluster's best: the longest.
        similarity: exact similarity of two conversations by index; called for `candidates` only.
        threshold: at which two conversations count as one.
    """
    clusters = _Clusters(len(content_hashes))
    first_copy = _first_copies(content_hashes)
    for index, first in enumerate(first_copy):
        clusters.join(first, index)

    def is_near(first: int, second: int) -> bool:
        return similarity(first, second) >= threshold

    for bucket in _buckets(band_keys, candidates(content_hashes, band_keys)):
        _join_bucket(clusters, bucket, is_near)
    return _drop_all_but_the_best(
        clusters,
        content_hashes,
        completion_lengths,
        lambda first, second: similarity(first_copy[first], first_copy[second]),
    )


def candidates(content_hashes: Sequence[bytes], band_keys: np.ndarray) -> np.ndarray:
    """Conversations whose text must be compared: those that share a band with other content, one of each content.

    Args:
        content_hashes: of N conversations.
        band_keys: uint64 [N, bands].

    Returns:
        int64, sorted indices.
    """
    distinct = np.unique(np.array(_first_copies(content_hashes), dtype=np.int64))
    shares_band = np.zeros(len(distinct), dtype=bool)
    for keys in band_keys[distinct].T:
        _, value, count = np.unique(keys, return_inverse=True, return_counts=True)
        shares_band |= count[value] > 1
    return distinct[shares_band]


def _first_copies(content_hashes: Sequence[bytes]) -> list[int]:
    first_with: dict[bytes, int] = {}
    return [first_with.setdefault(content_hash, index) for index, content_hash in enumerate(content_hashes)]


def _buckets(band_keys: np.ndarray, indices: np.ndarray) -> Iterator[list[int]]:
    """Conversations that share a band, for each band."""
    for keys in band_keys[indices].T:
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        yield from (bucket.tolist() for bucket in np.split(indices[order], borders))


def _join_bucket(clusters: _Clusters, bucket: Iterable[int], is_near: Callable[[int, int], bool]) -> None:
    """Join the clusters of all near pairs of a bucket.

    Members are kept by cluster, and one that comes is compared with the clusters that it is not in, each until a near
    member is found. So N conversations that are all near cost N comparisons, not N^2.
    """
    members: dict[int, list[int]] = {}
    for index in bucket:
        root = clusters.root(index)
        members.setdefault(root, []).append(index)
        for other in [other for other in members if other != root]:
            if any(is_near(member, index) for member in members[other]):
                clusters.join(other, root)
                members[other] += members.pop(root)
                root = other


def _drop_all_but_the_best(
    clusters: _Clusters,
    content_hashes: Sequence[bytes],
    completion_lengths: Sequence[int],
    similarity: Callable[[int, int], float],
) -> list[Duplicate]:
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(content_hashes)):
        members[clusters.root(index)].append(index)
    duplicates: list[Duplicate] = []
    for cluster in members.values():
        kept = max(cluster, key=lambda index: (completion_lengths[index], -index))
        seen = {content_hashes[kept]}
        for index in cluster:
            if index != kept:
                kind: Literal["exact", "near"] = "exact" if content_hashes[index] in seen else "near"
                is_copy = content_hashes[index] == content_hashes[kept]
                duplicates.append(Duplicate(index, kept, kind, 1.0 if is_copy else similarity(index, kept)))
                seen.add(content_hashes[index])
    return sorted(duplicates, key=lambda duplicate: duplicate.dropped)
