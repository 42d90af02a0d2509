"""Which contents share a band: equal content first, then equal band keys, sorted in one place or in parts.

A band's keys and the places they belong to are sorted as one integer each, an *entry*: the mixed key's upper bits
before the place. Entries can be parted by their uppermost bits, each part sorted alone and the results put one behind
another: the same as if all had been sorted together. `ray_jobs.data.band_shuffle` does that in tasks; here
`find_candidates` does it in one place, which says what the tasks must give, for all that has no Ray.

Shapes: N conversations, M contents that are searched, C candidates, B bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Buckets = tuple[np.ndarray, np.ndarray]
"""Members of the buckets (same key) of two and more of a band, as places, a bucket's side by side and in order; and the
number of each one's bucket, from 0. Of the smallest unsigned type that holds all places."""


@dataclass(frozen=True)
class Contents:
    """The different contents of a corpus.

    Attributes:
        first_copy_N: index of the first conversation with the same content.
        searched_M: sorted indices, one of each content of which near duplicates are looked for.
    """

    first_copy_N: np.ndarray
    searched_M: np.ndarray

    @classmethod
    def of(cls, content_hashes: np.ndarray, is_spared_N: np.ndarray | None = None) -> Contents:
        """By content hash.

        Args:
            content_hashes: uint64 [N, 2].
            is_spared_N: of which only copies may go. A content that one of them has is not searched wherever else it
                stands, so that one of its copies stays; by default there is none.
        """
        first_copy_N = _first_copies(content_hashes)
        is_searched_N = first_copy_N == np.arange(len(first_copy_N))
        if is_spared_N is not None:
            is_searched_N[first_copy_N[is_spared_N]] = False
        return cls(first_copy_N, np.flatnonzero(is_searched_N))

    @property
    def num_copies(self) -> int:
        """Conversations whose content stands before."""
        return int((self.first_copy_N != np.arange(len(self.first_copy_N))).sum())


def _first_copies(content_hashes: np.ndarray) -> np.ndarray:
    order = np.lexsort((content_hashes[:, 1], content_hashes[:, 0]))  # stable: of equal ones the first comes first
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (content_hashes[order][1:] != content_hashes[order][:-1]).any(axis=1)
    first_copy_N = np.empty(len(order), dtype=np.int64)
    first_copy_N[order] = order[is_first][np.cumsum(is_first) - 1]
    return first_copy_N


@dataclass(frozen=True)
class Candidates:
    """Conversations whose text must be compared: those that share a band with other content, one of each content.

    Attributes:
        first_copy_N: index of the first conversation with the same content.
        indices_C: the candidates' indices, sorted.
        bands: for each band its buckets, of places among the candidates.
    """

    first_copy_N: np.ndarray
    indices_C: np.ndarray
    bands: list[Buckets]

    @classmethod
    def of(cls, contents: Contents, bands: Sequence[Buckets]) -> Candidates:
        """From each band's buckets of places among the contents that are searched."""
        shares_band_M = np.zeros(len(contents.searched_M), dtype=bool)
        for members, _ in bands:
            shares_band_M[members] = True
        place_M = (np.cumsum(shares_band_M) - 1).astype(np.min_scalar_type(len(shares_band_M)))
        return cls(
            contents.first_copy_N,
            contents.searched_M[shares_band_M],
            [(place_M[members], bucket) for members, bucket in bands],
        )


def find_candidates(
    content_hashes: np.ndarray, band_keys: np.ndarray | None, is_spared_N: np.ndarray | None = None
) -> Candidates:
    """Look for equal content and equal bands, all in one place.

    Args:
        content_hashes: uint64 [N, 2]; equal hashes are exact duplicates.
        band_keys: uint64 [N, B]; None where only exact duplicates are looked for.
        is_spared_N: as of `Contents.of`.
    """
    contents = Contents.of(content_hashes, is_spared_N)
    size = len(contents.searched_M)
    columns = () if band_keys is None else np.ascontiguousarray(band_keys[contents.searched_M].T)
    return Candidates.of(contents, [buckets_of(entries_of(keys, 0, size), size) for keys in columns])


def place_bits(size: int) -> np.uint64:
    """Lower bits of an entry that hold the place, of so many places."""
    return np.uint64(max(size - 1, 0).bit_length())


def entries_of(keys: np.ndarray, first_place: int, size: int) -> np.ndarray:
    """Entries of a band's keys.

    Of a million keys one pair in ten bands agrees in the upper bits alone: verified for nothing.

    Args:
        keys: uint64 [..., n], of places that follow each other.
        first_place: the first one's place.
        size: M.

    Returns:
        uint64 [..., n].
    """
    num_bits = place_bits(size)
    mixed = keys * np.uint64(0x9E3779B97F4A7C15)  # so that small numbers differ in their upper bits too
    places = np.arange(first_place, first_place + keys.shape[-1], dtype=np.uint64)
    entries: np.ndarray = (mixed >> num_bits << num_bits) | places
    return entries


def buckets_of(entries: np.ndarray, size: int) -> Buckets:
    """Buckets of a band, or of a part of it.

    To sort entries takes half the time of a stable `argsort` of keys.

    Args:
        entries: uint64 [n], in any order.
        size: M.
    """
    num_bits = place_bits(size)
    ordered = np.sort(entries)
    is_start = np.ones(len(ordered) + 1, dtype=bool)
    is_start[1:-1] = (ordered >> num_bits)[1:] != (ordered >> num_bits)[:-1]
    shared = ~(is_start[:-1] & is_start[1:])
    dtype = np.min_scalar_type(size)
    mask = (np.uint64(1) << num_bits) - np.uint64(1)
    return (ordered[shared] & mask).astype(dtype), (np.cumsum(is_start[:-1][shared]) - 1).astype(dtype)


def joined(parts: Iterable[Buckets]) -> Buckets:
    """Buckets of a band from those of its parts, in order of their keys."""
    members, buckets, num_buckets = [], [], 0
    for some, bucket in parts:
        members.append(some)
        buckets.append((bucket + num_buckets).astype(bucket.dtype))
        num_buckets += int(bucket[-1]) + 1 if len(bucket) else 0
    return np.concatenate(members), np.concatenate(buckets)


@dataclass(frozen=True)
class Shuffle:
    """How M x B keys are handled in pieces of at most `keys_per_task`, but for a bucket, which is never parted.

    Attributes:
        size: M.
        num_bands: B.
        keys_per_task: bound of a piece.
    """

    size: int
    num_bands: int
    keys_per_task: int

    @property
    def slices(self) -> list[tuple[int, int]]:
        """First place and end of the contents whose keys are read together."""
        number = -(-self.size * self.num_bands // self.keys_per_task)
        return list(pairwise(np.linspace(0, self.size, number + 1).astype(int).tolist())) if number else []

    @property
    def num_parts(self) -> int:
        """Parts of a band, a power of two."""
        return 1 << (-(-self.size // self.keys_per_task) - 1).bit_length() if self.size else 1

    @property
    def groups(self) -> list[slice]:
        """Bands whose entries go together; one where a band has several parts."""
        bands = max(1, self.keys_per_task // max(1, self.size))
        return [slice(start, start + bands) for start in range(0, self.num_bands, bands)]

    def split(self, keys: np.ndarray, first_place: int) -> list[np.ndarray]:
        """Entries of a slice, one array for each group and part of it.

        Args:
            keys: uint64 [n, B], of places that follow each other.
            first_place: the first one's place.

        Returns:
            uint64 [bands of the group, entries of the part]; the parts of the first group first.
        """
        shift = np.uint64(64 - (self.num_parts - 1).bit_length())  # by 64 gives 0
        pieces = []
        for group in self.groups:
            entries = entries_of(np.ascontiguousarray(keys[:, group].T), first_place, self.size)
            parts = range(self.num_parts)
            pieces += [np.stack([band[band >> shift == np.uint64(part)] for band in entries]) for part in parts]
        return pieces
