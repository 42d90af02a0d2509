"""Word shingles, their MinHash signatures and bands.

A conversation is a set of word shingles; two sets' Jaccard similarity is estimated by how many of their
`num_permutations` minima agree, as datasketch defines them (its "affine32" scheme over the hashes below). The signature
is cut into `b` bands of `r` values; conversations that share a band are candidates, found with probability
1 - (1 - s^r)^b at similarity s. Candidates are verified exactly afterwards, so only a missed pair is an error, and the
bands are the most selective ones that find nearly every pair at the threshold: 25 bands of 5 for 0.7 (99.0 %).
Rejected: datasketch's own optimum, which balances both errors (14 of 9, 44 % at the threshold), and which has none for
thresholds near 1.

All is computed by `shingles.cpp`, where a C++ compiler can be had, else by the functions here whose names end in
`_in_python`: the same numbers, about 150 times slower.

Shapes: N texts, B bands, R rows a band, P pairs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasketch import MinHash

from moe.compiler import load_or_none
from service.spec.data import DedupSpec

SOURCE = Path(__file__).with_name("shingles.cpp")
_RECALL_AT_THRESHOLD = 0.98
_MASK = 2**64 - 1
_WORD_MULTIPLIER = 0x9E3779B97F4A7C15
_SHINGLE_MULTIPLIER = 0xD1342543DE82EF95


def bands_and_rows(spec: DedupSpec) -> tuple[int, int]:
    """Number of bands and values in each, for the threshold; bands of one value where even they miss pairs."""
    for num_rows in range(spec.num_permutations, 1, -1):
        num_bands = spec.num_permutations // num_rows
        if 1 - (1 - spec.threshold**num_rows) ** num_bands >= _RECALL_AT_THRESHOLD:
            return num_bands, num_rows
    return spec.num_permutations, 1


def band_keys(texts: Sequence[str], spec: DedupSpec) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the bands of each text, and the minima behind them.

    Args:
        texts: N conversations as text.
        spec: threshold, permutations, shingle size.

    Returns:
        uint64 [N, B], where equal keys in one column mean an equal band, up to 64-bit collisions; uint32 [N, B x R].
    """
    num_bands, num_rows = bands_and_rows(spec)
    if (library := _library()) is None:
        return band_keys_in_python(texts, spec)
    keys = np.empty((len(texts), num_bands), dtype=np.uint64)
    minima = np.empty((len(texts), num_bands * num_rows), dtype=np.uint32)
    a, b = _permutations(spec.num_permutations)
    data, offsets = _utf8(texts)
    library.band_keys(
        data.ctypes, offsets.ctypes, len(texts), spec.shingle_words, num_bands, num_rows, a.ctypes, b.ctypes,
        keys.ctypes, minima.ctypes,
    )  # fmt: skip
    return keys, minima


def band_keys_in_python(texts: Sequence[str], spec: DedupSpec) -> tuple[np.ndarray, np.ndarray]:
    """As `band_keys`, by datasketch."""
    num_bands, num_rows = bands_and_rows(spec)
    sets = (shingle_hashes_in_python(text, spec.shingle_words) for text in texts)
    signatures = MinHash.generator(
        sets, num_perm=spec.num_permutations, hashfunc=lambda shingle: shingle & 0xFFFFFFFF, scheme="affine32"
    )
    minima = np.array([signature.hashvalues for signature in signatures], dtype=np.uint32)
    minima = minima.reshape(-1, spec.num_permutations)[:, : num_bands * num_rows]
    return keys_of_minima_in_python(minima, num_bands, num_rows), minima


def keys_of_minima(minima: np.ndarray, num_bands: int, num_rows: int) -> np.ndarray:
    """Band keys of signatures, as `band_keys` gives them: uint64 [N, B].

    Args:
        minima: uint32 [N, at least B x R].
        num_bands: B.
        num_rows: R.
    """
    if (library := _library()) is None:
        return keys_of_minima_in_python(minima, num_bands, num_rows)
    minima = np.ascontiguousarray(minima, dtype=np.uint32)
    keys = np.empty((len(minima), num_bands), dtype=np.uint64)
    library.keys_of_minima(minima.ctypes, *minima.shape, num_bands, num_rows, keys.ctypes)
    return keys


def keys_of_minima_in_python(minima: np.ndarray, num_bands: int, num_rows: int) -> np.ndarray:
    """As `keys_of_minima`."""
    bands = minima[:, : num_bands * num_rows].reshape(len(minima), num_bands, num_rows).astype(np.uint64)
    keys = np.zeros((len(minima), num_bands), dtype=np.uint64)
    for row in range(num_rows):
        keys = (keys ^ bands[..., row]) * np.uint64(_WORD_MULTIPLIER)
        for shift, multiplier in ((29, 0xBF58476D1CE4E5B9), (32, 0x94D049BB133111EB)):
            keys ^= keys >> np.uint64(shift)
            keys *= np.uint64(multiplier)
        keys ^= keys >> np.uint64(29)
    return keys


@dataclass(frozen=True)
class ShingleSets:
    """The shingles of N texts as 64-bit hashes; two different ones agree once in 10^19 pairs.

    Attributes:
        hashes: uint64, sorted within each text, one text after another.
        borders: int64 [N + 1]; text i has `hashes[borders[i]:borders[i + 1]]`.
    """

    hashes: np.ndarray
    borders: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], num_words: int) -> ShingleSets:
        """All runs of `num_words` words, lower-cased; a shorter text is one shingle."""
        if (library := _library()) is None:
            sets = [sorted(shingle_hashes_in_python(text, num_words)) for text in texts]
            hashes = np.array([value for values in sets for value in values], dtype=np.uint64)
            return cls(hashes, np.cumsum([0, *map(len, sets)]))
        data, offsets = _utf8(texts)
        hashes = np.empty(len(data) // 2 + 1 + len(texts), dtype=np.uint64)
        borders = np.zeros(len(texts) + 1, dtype=np.int64)
        total = library.shingle_sets(
            data.ctypes, offsets.ctypes, len(texts), num_words, hashes.ctypes, borders[1:].ctypes
        )
        return cls(hashes[:total].copy(), borders)

    def jaccard(self, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        """Exact similarity of pairs of texts, float64 [P]."""
        first_P, second_P = (np.ascontiguousarray(indices, dtype=np.int64) for indices in (first_P, second_P))
        similarity_P = np.empty(len(first_P))
        if (library := _library()) is None:
            sets = [set(part.tolist()) for part in np.split(self.hashes, self.borders[1:-1])]
            pairs = zip(first_P.tolist(), second_P.tolist(), strict=True)
            similarity_P[:] = [len(sets[x] & sets[y]) / len(sets[x] | sets[y]) for x, y in pairs]
            return similarity_P
        library.similarities(
            self.hashes.ctypes, self.borders.ctypes, first_P.ctypes, second_P.ctypes, len(first_P), similarity_P.ctypes
        )
        return similarity_P


def shingle_hashes_in_python(text: str, num_words: int) -> set[int]:
    """Hashes of a text's shingles, as `shingles.cpp` defines them."""
    words = [_word_hash(word.encode()) for word in text.lower().split()]
    length = min(len(words), num_words)
    hashes = set()
    for start in range(len(words) - length + 1):
        polynomial = 0
        for word in words[start : start + length]:
            polynomial = (polynomial * _SHINGLE_MULTIPLIER + word) & _MASK
        hashes.add(_finalise(polynomial ^ length))
    return hashes


def _word_hash(word: bytes) -> int:
    value = 0
    for start in range(0, len(word) - 7, 8):
        value = ((value ^ int.from_bytes(word[start : start + 8], "little")) * _WORD_MULTIPLIER) & _MASK
        value ^= value >> 32
    rest = word[len(word) // 8 * 8 :]
    value = ((value ^ int.from_bytes(rest, "little")) * _WORD_MULTIPLIER) & _MASK
    return _finalise(value ^ len(word))


def _finalise(value: int) -> int:
    for shift, multiplier in ((29, 0xBF58476D1CE4E5B9), (32, 0x94D049BB133111EB)):
        value ^= value >> shift
        value = (value * multiplier) & _MASK
    return value ^ (value >> 29)


def _utf8(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts' bytes one after another, and where each begins and the last ends; lowered but for ASCII's letters."""
    array = pa.array([text if text.isascii() else text.lower() for text in texts], pa.large_string())
    _, offsets, data = array.buffers()
    return (
        np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8),
        np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1],
    )


@cache
def _permutations(num_permutations: int) -> tuple[np.ndarray, np.ndarray]:
    padding = (0, -num_permutations % 64)  # the kernel takes 64 at once
    a, b = (np.pad(values, padding) for values in MinHash(num_perm=num_permutations, scheme="affine32").permutations)
    return a, b


@cache
def _library() -> ctypes.CDLL | None:
    library = load_or_none(SOURCE, "conversations are signed in Python, about 150 times slower")
    if library is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        library.band_keys.argtypes = [pointer, pointer, number, number, number, number, *[pointer] * 4]
        library.shingle_sets.argtypes = [pointer, pointer, number, number, pointer, pointer]
        library.similarities.argtypes = [pointer, pointer, pointer, pointer, number, pointer]
        library.keys_of_minima.argtypes = [pointer, number, number, number, number, pointer]
        library.band_keys.restype = library.keys_of_minima.restype = library.similarities.restype = None
        library.shingle_sets.restype = number
    return library
