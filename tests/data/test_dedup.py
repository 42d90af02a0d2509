"""MinHash bands against datasketch, and deduplication against brute force."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import pytest
from datasketch import MinHash

from ray_jobs.data.dedup import Duplicate, find_duplicates
from ray_jobs.data.minhash import band_keys, bands_and_rows, jaccard, shingles
from service.spec.data import DedupSpec

SPEC = DedupSpec()
WORDS = [f"w{number}" for number in range(400)]


def duplicates_of(texts: Sequence[str], lengths: Sequence[int] | None = None) -> list[Duplicate]:
    sets = [shingles(text, SPEC.shingle_words) for text in texts]
    return find_duplicates(
        [hashlib.sha256(text.encode()).digest()[:16] for text in texts],
        band_keys(texts, SPEC),
        lengths or [len(text) for text in texts],
        lambda first, second: jaccard(sets[first], sets[second]),
        SPEC.threshold,
    )


def edited_texts(seed: int, num_texts: int = 60) -> list[str]:
    """Random texts of about a hundred words, and copies with more and more words replaced."""
    rng = random.Random(seed)
    texts = []
    for _ in range(num_texts // 6):
        words = rng.choices(WORDS, k=rng.randint(60, 140))
        for num_edits in (0, 0, 1, 2, 4, 8):
            edited = list(words)
            for position in rng.sample(range(len(words)), num_edits):
                edited[position] = rng.choice(WORDS)
            texts.append(" ".join(edited))
    rng.shuffle(texts)
    return texts


def brute_force_clusters(texts: Sequence[str]) -> set[frozenset[int]]:
    """Connected components over all pairs at the threshold, by repeated merging."""
    sets = [shingles(text, SPEC.shingle_words) for text in texts]
    clusters = [{index} for index in range(len(texts))]
    for first in range(len(texts)):
        for second in range(first):
            if jaccard(sets[first], sets[second]) >= SPEC.threshold:
                joined = [cluster for cluster in clusters if first in cluster or second in cluster]
                clusters = [cluster for cluster in clusters if cluster not in joined] + [set().union(*joined)]
    return {frozenset(cluster) for cluster in clusters}


def clusters_of(duplicates: list[Duplicate], size: int) -> set[frozenset[int]]:
    dropped = {duplicate.dropped for duplicate in duplicates}
    clusters = {index: {index} for index in range(size) if index not in dropped}
    for duplicate in duplicates:
        clusters[duplicate.kept].add(duplicate.dropped)
    return {frozenset(cluster) for cluster in clusters.values()}


@pytest.mark.parametrize("seed", range(5))
def test_clusters_equal_those_of_brute_force(seed: int) -> None:
    texts = edited_texts(seed)
    expected = brute_force_clusters(texts)
    assert 10 <= len(expected) < len(texts), "some are near, some are not"
    assert clusters_of(duplicates_of(texts), len(texts)) == expected


def test_what_is_kept_has_no_near_twin() -> None:
    texts = edited_texts(9)
    dropped = {duplicate.dropped for duplicate in duplicates_of(texts)}
    kept = [shingles(text, SPEC.shingle_words) for index, text in enumerate(texts) if index not in dropped]
    assert all(jaccard(a, b) < SPEC.threshold for number, a in enumerate(kept) for b in kept[:number])


def test_the_longest_completion_stays_then_the_earliest() -> None:
    same = " ".join(WORDS[:80])
    assert [(d.dropped, d.kept) for d in duplicates_of([same] * 3, [1, 5, 5])] == [(0, 1), (2, 1)]
    assert [(d.dropped, d.kept) for d in duplicates_of([same] * 3, [4, 4, 4])] == [(1, 0), (2, 0)]


def test_every_dropped_one_tells_kind_and_similarity() -> None:
    base = WORDS[:100]
    near = [*base[:-1], "other"]
    texts = [" ".join(words) for words in (base, near, base, near, WORDS[200:300])]
    assert duplicates_of(texts, [9, 1, 1, 1, 1]) == [
        Duplicate(1, 0, "near", pytest.approx(95 / 97)),
        Duplicate(2, 0, "exact", 1.0),
        Duplicate(3, 0, "exact", pytest.approx(95 / 97)),
    ]


def test_candidates_below_the_threshold_stay_apart() -> None:
    """Equal bands alone prove nothing: the pair is verified."""
    keys = np.zeros((2, 4), dtype=np.uint64)
    assert find_duplicates([b"a", b"b"], keys, [1, 1], lambda *_: 0.69, 0.7) == []
    assert len(find_duplicates([b"a", b"b"], keys, [1, 1], lambda *_: 0.70, 0.7)) == 1


def test_numbers_that_differ_make_texts_differ() -> None:
    """Word problems share their wording; at 5 words a shingle two numbers in a short text part them."""
    texts = [f"Ada buys {n} pencils for {n + 1} dollars each. How much does Ada pay?" for n in range(2, 30)]
    assert duplicates_of(texts) == []


def test_bands_are_cut_from_the_signatures_of_datasketch() -> None:
    texts = edited_texts(3, num_texts=12)
    num_bands, num_rows = bands_and_rows(SPEC)
    assert num_bands * num_rows <= SPEC.num_permutations
    keys = band_keys(texts, SPEC)
    assert keys.shape == (len(texts), num_bands)
    signatures = []
    for text in texts:
        minhash = MinHash(num_perm=SPEC.num_permutations)
        for shingle in shingles(text, SPEC.shingle_words):
            minhash.update(shingle.encode())
        signatures.append(minhash.hashvalues[: num_bands * num_rows].reshape(num_bands, num_rows))
    for first, second in np.ndindex(len(texts), len(texts)):
        equal_bands = (signatures[first] == signatures[second]).all(axis=1)
        assert ((keys[first] == keys[second]) == equal_bands).all()


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


def test_a_short_text_is_one_shingle() -> None:
    assert shingles("Two  WORDS", 5) == {"two words"}
    assert shingles("", 5) == {""}
    assert shingles("a b c", 2) == {"a b", "b c"}
    assert jaccard({"a", "b"}, {"b", "c"}) == pytest.approx(1 / 3)
