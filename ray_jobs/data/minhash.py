"""MinHash signatures, as datasketch defines them, and their bands.

A conversation is a set of word shingles; two sets' Jaccard similarity is estimated by how many of their
`num_permutations` minima agree. The signature is cut into `b` bands of `r` values; conversations that share a band are
candidates, found with probability 1 - (1 - s^r)^b at similarity s. Candidates are verified exactly afterwards, so only
a missed pair is an error, and the bands are the most selective ones that find nearly every pair at the threshold: 25
bands of 5 for 0.7 (99.0 %). Rejected: datasketch's own optimum, which balances both errors (14 of 9, 44 % at the
threshold), and which has none for thresholds near 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash

from service.spec.data import DedupSpec

_RECALL_AT_THRESHOLD = 0.98


def shingles(text: str, num_words: int) -> set[str]:
    """All runs of `num_words` words, lower-cased; a shorter text is one shingle."""
    words = text.lower().split()
    if len(words) <= num_words:
        return {" ".join(words)}
    return {" ".join(words[start : start + num_words]) for start in range(len(words) - num_words + 1)}


def jaccard(first: set[str], second: set[str]) -> float:
    """Exact similarity of two shingle sets."""
    return len(first & second) / len(first | second)


def bands_and_rows(spec: DedupSpec) -> tuple[int, int]:
    """Number of bands and values in each, for the threshold; bands of one value where even they miss pairs."""
    for num_rows in range(spec.num_permutations, 1, -1):
        num_bands = spec.num_permutations // num_rows
        if 1 - (1 - spec.threshold**num_rows) ** num_bands >= _RECALL_AT_THRESHOLD:
            return num_bands, num_rows
    return spec.num_permutations, 1


def band_keys(texts: Sequence[str], spec: DedupSpec) -> np.ndarray:
    """Keys of the bands of each text.

    Args:
        texts: N conversations as text.
        spec: threshold, permutations, shingle size.

    Returns:
        uint64 [N, bands]; equal keys in one column mean an equal band, up to 64-bit collisions.
    """
    num_bands, num_rows = bands_and_rows(spec)
    sets = ([shingle.encode() for shingle in shingles(text, spec.shingle_words)] for text in texts)
    signatures = [minhash.hashvalues for minhash in MinHash.generator(sets, num_perm=spec.num_permutations)]
    bands = np.array(signatures, dtype=np.uint64).reshape(len(texts), -1)[:, : num_bands * num_rows]
    return _hash_rows(bands.reshape(len(texts), num_bands, num_rows))


def _hash_rows(values: np.ndarray) -> np.ndarray:
    """64-bit polynomial hash over the last axis, finalised after every step so that no two terms can cancel."""
    keys = np.zeros(values.shape[:-1], dtype=np.uint64)
    for column in range(values.shape[-1]):
        keys = (keys ^ values[..., column]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
        keys *= np.uint64(0xBF58476D1CE4E5B9)
        keys ^= keys >> np.uint64(32)
    return keys
