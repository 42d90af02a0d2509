"""Bands shared, found in parts, beside the same found in one place; and what pairs of keys say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ray_jobs.data.bands import Buckets, Shuffle, buckets_of, entries_of, find_candidates, joined

KEYS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "few": lambda rng, size: rng.integers(0, size // 3 + 1, (size, 5)),
    "any": lambda rng, size: rng.integers(0, 2**64, (size, 5), dtype=np.uint64)[rng.integers(0, size, size)],
    "zeros": lambda _, size: np.zeros((size, 5)),
    "one": lambda _, size: np.full((size, 5), 2**64 - 1, dtype=np.uint64),
    "skew": lambda rng, size: np.where(rng.random((size, 5)) < 0.9, 7, rng.integers(0, size, (size, 5))),
    "none": lambda _, size: np.arange(5 * size).reshape(size, 5),
}


def in_parts(keys: np.ndarray, keys_per_task: int) -> list[Buckets]:
    """As the tasks do, one after another."""
    shuffle = Shuffle(*keys.shape, keys_per_task)
    slices = [shuffle.split(keys[start:stop], start) for start, stop in shuffle.slices]
    found = [[buckets_of(np.concatenate(band), len(keys)) for band in zip(*pieces, strict=True)]
             for pieces in zip(*slices, strict=True)]  # fmt: skip
    starts = range(0, len(found), shuffle.num_parts)
    return [joined(band) for first in starts for band in zip(*found[first : first + shuffle.num_parts], strict=True)]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(
    ("size", "keys_per_task"), [(1, 1), (2, 1), (17, 1), (37, 16), (300, 60), (300, 300), (300, 700), (300, 9999)]
)
def test_parts_give_what_one_place_gives(kind: str, size: int, keys_per_task: int) -> None:
    keys = KEYS[kind](np.random.default_rng(size), size).astype(np.uint64)
    expected = [buckets_of(entries_of(column, 0, size), size) for column in keys.T]
    actual = in_parts(keys, keys_per_task)
    for found, wanted in zip(actual, expected, strict=True):
        for some, same in zip(found, wanted, strict=True):
            assert some.dtype == same.dtype
            assert np.array_equal(some, same)


def test_a_part_shifted_by_a_bit_gives_other_buckets() -> None:
    """Were a bucket parted, or the parts joined in another order, the test above would see it."""
    keys = KEYS["few"](np.random.default_rng(0), 500).astype(np.uint64)[:, :1]
    entries = entries_of(keys[:, 0], 0, 500)
    halves = [buckets_of(entries[:250], 500), buckets_of(entries[250:], 500)]
    whole = buckets_of(entries, 500)
    assert len(joined(halves)[0]) < len(whole[0])
    upper = entries >> np.uint64(63) == 1
    swapped = joined([buckets_of(entries[upper], 500), buckets_of(entries[~upper], 500)])
    assert not np.array_equal(swapped[0], whole[0])
    assert np.array_equal(np.sort(swapped[0]), np.sort(whole[0]))


@pytest.mark.parametrize("kind", KEYS)
def test_buckets_are_the_places_of_equal_keys(kind: str) -> None:
    keys = KEYS[kind](np.random.default_rng(3), 200).astype(np.uint64)[:, 0]
    members, bucket = buckets_of(entries_of(keys, 0, 200), 200)
    found = {tuple(members[bucket == number].tolist()) for number in range(int(bucket.max(initial=0)) + 1)} - {()}
    groups = (np.flatnonzero(keys == key) for key in np.unique(keys))
    assert found == {tuple(group.tolist()) for group in groups if len(group) > 1}


@pytest.mark.parametrize(("size", "keys_per_task"), [(1, 1), (1000, 64), (1000, 1000), (1000, 1001), (999, 10**6)])
def test_a_piece_holds_no_more_than_asked(size: int, keys_per_task: int) -> None:
    shuffle = Shuffle(size, 25, keys_per_task)
    assert max(stop - start for start, stop in shuffle.slices) * 25 <= keys_per_task + 25
    assert [place for start, stop in shuffle.slices for place in range(start, stop)] == list(range(size))
    assert size / shuffle.num_parts <= keys_per_task
    for group in shuffle.groups:
        assert len(range(25)[group]) * size <= keys_per_task or len(range(25)[group]) == 1
        assert shuffle.num_parts == 1 or len(range(25)[group]) == 1
    assert [band for group in shuffle.groups for band in range(25)[group]] == list(range(25))


def test_nothing_is_shared_by_nobody() -> None:
    assert Shuffle(0, 25, 8).slices == []
    candidates = find_candidates(np.zeros((0, 2), dtype=np.uint64), np.zeros((0, 25), dtype=np.uint64))
    assert [len(members) for members, _ in candidates.bands] == [0] * 25
