"""MinHash bands against datasketch, and deduplication against brute force."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import pytest
from datasketch import MinHash

from ray_jobs.data.dedup import Duplicate, _Clusters, candidates, find_duplicates
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


@pytest.mark.parametrize("seed", range(20))
def test_clusters_are_the_connected_components_of_any_near_pairs(seed: int) -> None:
    """Pairs near by chance and buckets by chance, so that clusters grow together in every way."""
    rng = np.random.default_rng(seed)
    size = 40
    hashes = [bytes([value]) for value in rng.integers(0, 36, size)]
    keys = rng.integers(0, 8, (size, 3)).astype(np.uint64)
    keys = keys[[hashes.index(content_hash) for content_hash in hashes]]
    near_contents = np.triu(rng.random((36, 36)) < 0.15)
    contents = [content_hash[0] for content_hash in hashes]
    near = (near_contents | near_contents.T)[np.ix_(contents, contents)]
    duplicates = find_duplicates(hashes, keys, [1] * size, lambda a, b: float(near[a, b]), 0.5)
    joined = near & (keys[:, None] == keys[None]).any(axis=2)
    joined |= np.equal.outer(contents, contents)
    for _ in range(6):
        joined = joined @ joined
    expected = {frozenset(np.flatnonzero(row).tolist()) for row in joined}
    assert 3 < len(expected) < size - 5
    assert clusters_of(duplicates, size) == expected


def test_many_near_copies_take_comparisons_in_proportion() -> None:
    """Two templates, each filled in 1,500 times: one comparison joins a row, one more tells how near it was."""
    templates = [WORDS[:100], WORDS[100:200]]
    texts = [" ".join([f"name{number}", *templates[number % 2]]) for number in range(3000)]
    sets = [shingles(text, SPEC.shingle_words) for text in texts]
    calls = 0

    def similarity(first: int, second: int) -> float:
        nonlocal calls
        calls += 1
        return jaccard(sets[first], sets[second])

    hashes = [text.encode() for text in texts]
    duplicates = find_duplicates(hashes, band_keys(texts, SPEC), [1] * len(texts), similarity, SPEC.threshold)
    assert [duplicate.kept for duplicate in duplicates] == [number % 2 for number in range(2, 3000)]
    assert calls == 2 * len(duplicates)


def test_a_pair_that_shares_a_cluster_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to see that it does: 2,000 rows have two million pairs, and share most of 25 bands."""
    roots = 0
    root = _Clusters.root

    def counted(clusters: _Clusters, index: int) -> int:
        nonlocal roots
        roots += 1
        return root(clusters, index)

    monkeypatch.setattr(_Clusters, "root", counted)
    size, num_bands = 2000, 25
    keys = np.zeros((size, num_bands), dtype=np.uint64)
    hashes = [number.to_bytes(4, "little") for number in range(size)]
    assert len(find_duplicates(hashes, keys, [1] * size, lambda *_: 1.0, 0.7)) == size - 1
    assert roots < 3 * size * num_bands


def test_candidates_are_one_of_each_content_that_shares_a_band() -> None:
    keys = np.array([[1, 1], [2, 2], [1, 1], [3, 2], [4, 4], [4, 4]], dtype=np.uint64)
    assert candidates([b"a", b"b", b"a", b"c", b"d", b"d"], keys).tolist() == [1, 3]
    assert candidates([], np.zeros((0, 2), dtype=np.uint64)).tolist() == []


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
