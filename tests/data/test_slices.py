"""Copying slices: what NumPy's own slicing gives, compiled or not, and nothing outside of the arrays."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.data import slices
from ray_jobs.data.slices import copy_slices
from tests.data.conftest import use_kernel


@pytest.fixture(params=["kernel", "python"], autouse=True)
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(slices, "_library", lambda: None)
    else:
        use_kernel(slices._library)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.int64])
@pytest.mark.parametrize("seed", range(5))
def test_slices_land_in_their_places_and_nothing_else_changes(dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 100, 5000).astype(dtype)
    lengths = rng.integers(0, 40, 50)
    starts = rng.integers(0, 5000 - lengths + 1)
    order = rng.permutation(50)
    places = np.empty(50, dtype=np.int64)
    places[order] = np.cumsum(lengths[order] + 1) - lengths[order]  # a gap of one before each
    target = np.zeros(lengths.sum() + 51, dtype=dtype)
    expected = target.copy()
    for start, length, place in zip(starts, lengths, places, strict=True):
        expected[place : place + length] = source[start : start + length]
    copy_slices(source, starts, lengths, target, places)
    np.testing.assert_array_equal(target, expected)


def test_a_slice_outside_of_its_array_is_refused() -> None:
    source, target = np.arange(10, dtype=np.int32), np.zeros(10, dtype=np.int32)
    for start, length, place in ((8, 3, 0), (0, 3, 8), (-1, 2, 0), (0, 2, -1), (2, -1, 2)):
        with pytest.raises(ValueError, match="outside of its array"):
            copy_slices(source, np.array([start]), np.array([length]), target, np.array([place]))
    for bad in (target.astype(np.int64), np.zeros(20, dtype=np.int32)[::2]):
        with pytest.raises(ValueError, match="contiguous arrays of one type"):
            copy_slices(source, np.array([0]), np.array([1]), bad, np.array([0]))
    with pytest.raises(ValueError, match="1 slices have 2 lengths"):
        copy_slices(source, np.array([0]), np.array([1, 1]), target, np.array([0]))
    assert not target.any()


def test_no_slices_are_no_work() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    copy_slices(nothing, nothing, nothing, nothing, nothing)
