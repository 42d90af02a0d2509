"""Which conversations to keep: exact duplicates by content hash, near ones by bands and exact verification.

Works on keys alone; the text of candidates is asked for when a pair must be verified. Duplicates form clusters by
connection; of each the conversation with the longest completion stays, then the earliest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
        similarity: exact similarity of two conversations by index; called for candidates only.
        threshold: at which two conversations count as one.
    """
    size = len(content_hashes)
    clusters = _Clusters(size)
    first_with: dict[bytes, int] = {}
    for index, content_hash in enumerate(content_hashes):
        clusters.join(first_with.setdefault(content_hash, index), index)
    distinct = np.array(sorted(first_with.values()), dtype=np.int64)
    for first, second in _candidates(band_keys, distinct):
        if clusters.root(first) != clusters.root(second) and similarity(first, second) >= threshold:
            clusters.join(first, second)
    return _drop_all_but_the_best(clusters, content_hashes, completion_lengths, similarity)


def _candidates(band_keys: np.ndarray, distinct: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of distinct conversations that share a band, as many times as they share one."""
    for keys in band_keys[distinct].T:
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(distinct[order], borders):
            members = bucket.tolist()
            for position, second in enumerate(members[1:], 1):
                yield from ((first, second) for first in members[:position])


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
