"""Deduplication against brute force over all pairs of shingle strings."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from ray_jobs.data import dedup
from ray_jobs.data.bands import Candidates, find_candidates
from ray_jobs.data.dedup import Duplicates, Similarity, find_duplicates
from ray_jobs.data.minhash import ShingleSets, band_keys
from service.spec.data import DedupSpec

SPEC = DedupSpec()
WORDS = [f"w{number}" for number in range(400)]


def shingles(text: str) -> set[str]:
    """The strings themselves, no hashes."""
    words = text.lower().split()
    last = max(len(words) - SPEC.shingle_words, 0)
    return {" ".join(words[start : start + SPEC.shingle_words]) for start in range(last + 1)}


def jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)


def content_hashes(texts: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def duplicates_of(texts: Sequence[str], preference: Sequence[int] | None = None) -> Duplicates:
    candidates = find_candidates(content_hashes(texts), band_keys(texts, SPEC)[0])
    sets = ShingleSets.of([texts[index] for index in candidates.indices_C], SPEC.shingle_words)
    return find_duplicates(
        candidates, sets.jaccard, SPEC.threshold, np.array(preference or [len(text) for text in texts])
    )


def as_rows(duplicates: Duplicates) -> list[tuple[int, int, bool, float]]:
    columns = (duplicates.dropped_D, duplicates.kept_D, duplicates.is_exact_D, duplicates.similarity_D)
    return list(zip(*(column.tolist() for column in columns), strict=True))


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
    sets = [shingles(text) for text in texts]
    clusters = [{index} for index in range(len(texts))]
    for first in range(len(texts)):
        for second in range(first):
            if jaccard(sets[first], sets[second]) >= SPEC.threshold:
                joined = [cluster for cluster in clusters if first in cluster or second in cluster]
                clusters = [cluster for cluster in clusters if cluster not in joined] + [set().union(*joined)]
    return {frozenset(cluster) for cluster in clusters}


def clusters_of(duplicates: Duplicates, size: int) -> set[frozenset[int]]:
    clusters = {index: {index} for index in range(size)}
    for dropped, kept, *_ in as_rows(duplicates):
        del clusters[dropped]
        clusters[kept].add(dropped)
    return {frozenset(cluster) for cluster in clusters.values()}


@pytest.mark.parametrize("seed", range(5))
def test_clusters_equal_those_of_brute_force(seed: int) -> None:
    texts = edited_texts(seed)
    expected = brute_force_clusters(texts)
    assert 10 <= len(expected) < len(texts), "some are near, some are not"
    assert clusters_of(duplicates_of(texts), len(texts)) == expected


def test_what_is_kept_has_no_near_twin() -> None:
    texts = edited_texts(9)
    dropped = set(duplicates_of(texts).dropped_D.tolist())
    kept = [shingles(text) for index, text in enumerate(texts) if index not in dropped]
    assert all(jaccard(a, b) < SPEC.threshold for number, a in enumerate(kept) for b in kept[:number])


def test_the_preferred_one_stays_then_the_earliest() -> None:
    same = " ".join(WORDS[:80])
    assert [row[:2] for row in as_rows(duplicates_of([same] * 3, [1, 5, 5]))] == [(0, 1), (2, 1)]
    assert [row[:2] for row in as_rows(duplicates_of([same] * 3, [4, 4, 4]))] == [(1, 0), (2, 0)]


def test_every_dropped_one_tells_kind_and_similarity() -> None:
    base = WORDS[:100]
    near = [*base[:-1], "other"]
    texts = [" ".join(words) for words in (base, near, base, near, WORDS[200:300])]
    assert as_rows(duplicates_of(texts, [9, 1, 1, 1, 1])) == [
        (1, 0, False, pytest.approx(95 / 97)),
        (2, 0, True, 1.0),
        (3, 0, True, pytest.approx(95 / 97)),
    ]
    assert as_rows(duplicates_of(texts, [1, 9, 1, 1, 1])) == [
        (0, 1, False, pytest.approx(95 / 97)),
        (2, 1, True, pytest.approx(95 / 97)),
        (3, 1, True, 1.0),
    ]


def hashes_of(numbers: Sequence[int]) -> np.ndarray:
    return np.array([[number, number] for number in numbers], dtype=np.uint64).reshape(-1, 2)


def constant(similarity: float) -> Similarity:
    return lambda first_P, _second_P: np.full(len(first_P), similarity)


def test_candidates_below_the_threshold_stay_apart() -> None:
    """Equal bands alone prove nothing: the pair is verified."""
    candidates = find_candidates(hashes_of([1, 2]), np.zeros((2, 4), dtype=np.uint64))
    ones = np.ones(2)
    assert as_rows(find_duplicates(candidates, constant(0.69), 0.7, ones)) == []
    assert as_rows(find_duplicates(candidates, constant(0.70), 0.7, ones)) == [(1, 0, False, 0.70)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pairs_at_once", [1, 7, 1 << 20])
def test_clusters_are_the_connected_components_of_any_near_pairs(
    seed: int, pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs near by chance and buckets by chance, so that clusters grow together in every way."""
    monkeypatch.setattr(dedup, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(seed)
    size = 40
    contents = rng.integers(0, 36, size)
    keys = rng.integers(0, 8, (36, 3)).astype(np.uint64)[contents]
    near_contents = np.triu(rng.random((36, 36)) < 0.15)
    near = (near_contents | near_contents.T)[np.ix_(contents, contents)]
    candidates = find_candidates(hashes_of(contents), keys)

    def similarity(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        compared: np.ndarray = near[candidates.indices_C[first_P], candidates.indices_C[second_P]].astype(float)
        return compared

    duplicates = find_duplicates(candidates, similarity, 0.5, np.ones(size))
    joined = near & (keys[:, None] == keys[None]).any(axis=2)
    joined |= np.equal.outer(contents, contents)
    for _ in range(6):
        joined = joined @ joined
    expected = {frozenset(np.flatnonzero(row).tolist()) for row in joined}
    assert 1 < len(expected) < size - 5
    assert clusters_of(duplicates, size) == expected


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_compared_once_and_few_at_a_time(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is near, so that all pairs which some band brings together are compared, neighbours first."""
    keys = np.random.default_rng(seed).integers(0, 30, (200, 6)).astype(np.uint64)
    candidates = find_candidates(hashes_of(range(200)), keys)
    calls: list[list[tuple[int, int]]] = []

    def unlike(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        calls.append(list(zip(first_P.tolist(), second_P.tolist(), strict=True)))
        return np.zeros(len(first_P))

    def compared() -> list[tuple[int, int]]:
        calls.clear()
        find_duplicates(candidates, unlike, 0.7, np.ones(200))
        return list(itertools.chain(*calls))

    at_once = compared()
    assert len(set(at_once)) == len(at_once)
    together = {
        (first, second)
        for first, second in itertools.combinations(range(200), 2)
        if (keys[first] == keys[second]).any()
    }
    assert set(at_once) == together
    first_call = calls[0]
    monkeypatch.setattr(dedup, "_PAIRS_AT_ONCE", 50)
    in_parts = compared()
    assert set(in_parts) == together
    assert in_parts[: len(first_call)] == first_call, "the same neighbours in the same order"
    assert max(map(len, calls)) <= 50 + 200 < len(first_call), "so many, and one distance of one band"


def test_many_near_copies_take_comparisons_in_proportion() -> None:
    """Two templates, each filled in 1,500 times: a few comparisons join a row, one more tells how near it was."""
    templates = [WORDS[:100], WORDS[100:200]]
    texts = [" ".join([f"name{number}", *templates[number % 2]]) for number in range(3000)]
    candidates = find_candidates(content_hashes(texts), band_keys(texts, SPEC)[0])
    sets = ShingleSets.of(texts, SPEC.shingle_words)
    assert candidates.indices_C.tolist() == list(range(3000))
    calls = 0

    def similarity(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += len(first_P)
        return sets.jaccard(first_P, second_P)

    duplicates = find_duplicates(candidates, similarity, SPEC.threshold, np.ones(len(texts)))
    assert duplicates.kept_D.tolist() == [number % 2 for number in range(2, 3000)]
    # one tells how near each dropped row was; neighbours are the same pairs in most bands, but not in all 25
    assert len(duplicates.dropped_D) < calls < 3 * len(texts)


def test_a_bucket_of_unlike_conversations_takes_comparisons_in_proportion() -> None:
    """Two bands that all have in common."""
    size, calls = 3000, 0

    def unlike(first_P: np.ndarray, _second_P: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += len(first_P)
        return np.zeros(len(first_P))

    candidates = find_candidates(hashes_of(range(size)), np.zeros((size, 2), dtype=np.uint64))
    assert as_rows(find_duplicates(candidates, unlike, 0.7, np.ones(size))) == []
    assert calls == sum(size - distance for distance in range(1, 65))


def test_candidates_are_one_of_each_content_that_shares_a_band() -> None:
    keys = np.array([[1, 1], [2, 2], [1, 1], [3, 2], [4, 4], [4, 4]], dtype=np.uint64)
    assert find_candidates(hashes_of([1, 2, 1, 3, 4, 4]), keys).indices_C.tolist() == [1, 3]
    assert find_candidates(hashes_of([]), np.zeros((0, 2), dtype=np.uint64)).indices_C.tolist() == []


def test_a_content_that_a_spared_row_has_is_no_candidate() -> None:
    """Contents 1, 2 and 3 are all alike; whether the spared row of content 1 stands first or last, 2 and 3 alone go."""
    for contents, spared in (([1, 2, 1, 3], 2), ([1, 2, 1, 3], 0)):
        is_spared = np.arange(4) == spared
        candidates = find_candidates(hashes_of(contents), np.zeros((4, 2), dtype=np.uint64), is_spared)
        assert candidates.indices_C.tolist() == [1, 3]
        dropped = find_duplicates(candidates, constant(0.9), 0.7, np.array([1, 9, 1, 9]))
        assert as_rows(dropped) == [(2, 0, True, 1.0), (3, 1, False, 0.9)]


@pytest.mark.parametrize("keys", [None, np.zeros((3, 0), dtype=np.uint64)])
def test_without_bands_only_equal_content_is_dropped(keys: np.ndarray | None) -> None:
    candidates: Candidates = find_candidates(hashes_of([5, 6, 5]), keys)
    assert as_rows(find_duplicates(candidates, constant(0), 0.7, np.ones(3))) == [(2, 0, True, 1.0)]


def test_numbers_that_differ_make_texts_differ() -> None:
    """Word problems share their wording; at 5 words a shingle two numbers in a short text part them."""
    texts = [f"Ada buys {n} pencils for {n + 1} dollars each. How much does Ada pay?" for n in range(2, 30)]
    assert as_rows(duplicates_of(texts)) == []
