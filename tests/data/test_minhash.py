"""Signatures, bands and shingle sets: the kernel against its definition in Python, and that against datasketch."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from datasketch import MinHash

from ray_jobs.data import minhash
from ray_jobs.data.minhash import (
    ShingleSets,
    band_keys,
    band_keys_in_python,
    bands_and_rows,
    keys_of_minima,
    keys_of_minima_in_python,
    shingle_hashes_in_python,
)
from service.spec.data import DedupSpec
from tests.data.conftest import use_kernel

PIECES = [
    "a", "B", "É", "é", "日本", "İ", "ß", "Σ", "\U0001d49c", "1", "20", "12345678", "a-word-of-many-letters", "x y",
    " ", "  ", "\n", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u200b", "\u2028", "\u202f",
    "\u205f", "\u3000", "\x00", "_",
]  # fmt: skip


def odd_texts(seed: int = 0) -> list[str]:
    """Texts of every kind of character and space, of no words and of one."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 60))) for _ in range(300)]
    return [*texts, "", " ", "one", "12345678", "1234567 12345678 123456789", "A" * 5000]


@pytest.fixture(params=["kernel", "python"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(minhash, "_library", lambda: None)
    else:
        use_kernel(minhash._library)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize(
    "spec", [DedupSpec(), DedupSpec(shingle_words=1, threshold=0.9), DedupSpec(num_permutations=70)]
)
def test_keys_and_minima_are_those_of_the_definition(spec: DedupSpec) -> None:
    texts = odd_texts()
    for actual, expected in zip(band_keys(texts, spec), band_keys_in_python(texts, spec), strict=True):
        assert actual.dtype == expected.dtype
        assert np.array_equal(actual, expected)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("num_words", [1, 2, 5])
def test_shingle_sets_are_those_of_the_definition(num_words: int) -> None:
    texts = odd_texts(1)
    sets = ShingleSets.of(texts, num_words)
    expected = [shingle_hashes_in_python(text, num_words) for text in texts]
    assert [part.tolist() for part in np.split(sets.hashes, sets.borders[1:-1])] == [sorted(part) for part in expected]
    pairs = list(itertools.product(range(0, len(texts), 7), repeat=2))
    first_P, second_P = np.array(pairs).T
    assert sets.jaccard(first_P, second_P).tolist() == [
        len(expected[x] & expected[y]) / len(expected[x] | expected[y]) for x, y in pairs
    ]


@pytest.mark.usefixtures("_either_way")
def test_no_texts_have_no_keys() -> None:
    keys, minima = band_keys([], DedupSpec())
    assert keys.shape == (0, 25)
    assert minima.shape == (0, 125)
    assert len(ShingleSets.of([], 5).hashes) == 0


def test_different_shingles_have_different_hashes() -> None:
    """All of 200,000 texts of numbers in one pattern, which a weak combination of words confuses."""
    texts = [f"k {a} {b} q {c}" for a in range(60) for b in range(60) for c in range(56)]
    hashes = ShingleSets.of(texts, 5).hashes
    assert len(np.unique(hashes)) == len(texts)
    # of 32 bits, which signatures are made of, about n^2 / 2^33 pairs agree by chance; four standard deviations more
    expected = len(texts) ** 2 / 2**33
    assert len(texts) - len(np.unique(hashes.astype(np.uint32))) < expected + 4 * expected**0.5


def test_words_are_those_of_str_split() -> None:
    """Every character of the basic plane between two words."""
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    characters = [character for character in characters if character.lower() == character]
    sets = ShingleSets.of([f"x{character}y" for character in characters], 1)
    splits = np.diff(sets.borders) == 2
    assert splits.tolist() == [len(f"x{character}y".split()) == 2 for character in characters]


def test_minima_are_those_of_datasketch() -> None:
    spec = DedupSpec()
    text = "the quick brown fox jumps over the lazy dog and runs away"
    reference = MinHash(num_perm=spec.num_permutations, hashfunc=lambda shingle: shingle & 0xFFFFFFFF)
    for shingle in shingle_hashes_in_python(text, spec.shingle_words):
        reference.update(shingle)
    assert band_keys([text], spec)[1][0].tolist() == reference.hashvalues[:125].tolist()


def test_equal_minima_estimate_the_similarity() -> None:
    """The share of equal minima of random sets of known similarity, within four standard deviations."""
    spec = DedupSpec(num_permutations=1024, threshold=0.01)
    for common in (20, 50, 80):
        words = [f"w{number}" for number in range(200 - common)]
        one, other = words[:100], words[100 - common :]
        minima = band_keys([" ".join(one), " ".join(other)], spec.model_copy(update={"shingle_words": 1}))[1]
        expected = common / (200 - common)
        deviation = (expected * (1 - expected) / 1024) ** 0.5
        assert abs(float((minima[0] == minima[1]).mean()) - expected) < 4 * deviation


def test_keys_of_minima_are_the_band_keys() -> None:
    keys, minima = band_keys(odd_texts(), DedupSpec())
    assert np.array_equal(keys_of_minima(minima, 25, 5), keys)
    for bands in ((41, 3), (11, 11), (125, 1)):  # some leave minima over
        assert np.array_equal(keys_of_minima(minima, *bands), keys_of_minima_in_python(minima, *bands))


def test_bands_are_equal_where_their_minima_are() -> None:
    spec = DedupSpec()
    keys, minima = band_keys([f"{' '.join(map(str, range(n, n + 40)))}" for n in range(12)], spec)
    bands = minima.reshape(12, 25, 5)
    for first, second in itertools.combinations(range(12), 2):
        assert ((keys[first] == keys[second]) == (bands[first] == bands[second]).all(axis=1)).all()


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.7, (25, 5)), (0.5, (42, 3)), (1.0, (1, 128)), (0.99, (4, 32)), (0.01, (128, 1))]
)
def test_bands_find_nearly_every_pair_at_the_threshold(threshold: float, expected: tuple[int, int]) -> None:
    num_bands, num_rows = bands_and_rows(DedupSpec(threshold=threshold))
    assert (num_bands, num_rows) == expected
    if num_rows > 1:
        assert 1 - (1 - threshold**num_rows) ** num_bands >= 0.98
    more = num_rows + 1
    assert 1 - (1 - threshold**more) ** (128 // more) < 0.98, "no more selective bands would do"
