"""Points on a simplex with bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from ray_jobs.tune.simplex import Bounds, corners, from_cube, lattice, nearest, quasi_random, rounded

FREE = Bounds(np.zeros(3), np.ones(3))


@st.composite
def any_bounds(draw: st.DrawFn) -> Bounds:
    """Bounds around some point of the simplex, with at most 4 digits."""
    weights = np.array(draw(st.lists(st.integers(0, 20), min_size=2, max_size=5).filter(any)), dtype=float)
    point = np.array(rounded(weights / weights.sum(), Bounds(np.zeros(len(weights)), np.ones(len(weights)))))
    slack = draw(st.lists(st.sampled_from([0, 0.01, 0.2, 1]), min_size=2 * len(point), max_size=2 * len(point)))
    low, high = np.clip(point - slack[: len(point)], 0, 1), np.clip(point + slack[len(point) :], 0, 1)
    return Bounds(np.round(low, 4), np.round(high, 4))


@settings(max_examples=60, deadline=None)
@given(any_bounds(), st.integers(0, 1000))
def test_every_way_to_a_point_keeps_to_the_bounds(bounds: Bounds, seed: int) -> None:
    cube_ND = np.random.default_rng(seed).random((5, len(bounds.low_K) - 1))
    far_K = np.random.default_rng(seed).normal(size=len(bounds.low_K))
    for point_K in [*from_cube(cube_ND, bounds), *corners(bounds), nearest(far_K, bounds)]:
        assert point_K.sum() == pytest.approx(1, abs=1e-9)
        assert (point_K >= bounds.low_K - 1e-9).all()
        assert (point_K <= bounds.high_K + 1e-9).all()
        shares = np.array(rounded(point_K, bounds))
        assert shares.sum() == pytest.approx(1, abs=1e-12)
        assert (shares >= bounds.low_K - 1e-12).all()
        assert (shares <= bounds.high_K + 1e-12).all()
        assert np.abs(shares - point_K).max() < 5e-4
        assert np.allclose(shares * 10_000, np.round(shares * 10_000))


def test_the_cube_covers_the_simplex_evenly() -> None:
    points_NK = from_cube(np.random.default_rng(0).random((40_000, 2)), FREE)
    # a uniform share of three has mean 1/3 and variance 1/18, whose estimates err by 0.0012 and 0.0005 (4 sigma here)
    assert points_NK.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.005)
    assert points_NK.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.002)
    assert (points_NK.max(axis=1) < 0.5).mean() == pytest.approx(1 / 4, abs=0.01)  # the middle triangle


def test_quasi_random_points_are_more_even_than_random_ones() -> None:
    ours = np.mean([qmc.discrepancy(quasi_random(7, 2, seed)) for seed in range(10)])
    random = np.mean([qmc.discrepancy(np.random.default_rng(seed).random((7, 2))) for seed in range(10)])
    assert ours < 0.5 * random
    assert (quasi_random(5, 2, 1) == quasi_random(9, 2, 1)[:5]).all()
    assert (quasi_random(5, 2, 1) != quasi_random(5, 2, 2)).any()


@settings(max_examples=40, deadline=None)
@given(any_bounds(), st.integers(0, 1000))
def test_the_nearest_point_is_nearer_than_any_other(bounds: Bounds, seed: int) -> None:
    rng = np.random.default_rng(seed)
    point_K = rng.normal(size=len(bounds.low_K))
    others_NK = from_cube(rng.random((200, len(bounds.low_K) - 1)), bounds)
    found = ((nearest(point_K, bounds) - point_K) ** 2).sum()
    assert found <= ((others_NK - point_K) ** 2).sum(axis=1).min() + 1e-9


def test_a_corner_is_as_near_to_one_category_as_the_bounds_allow() -> None:
    bounds = Bounds(np.array([0, 0.1, 0]), np.array([0.6, 1, 1]))
    assert corners(FREE).tolist() == np.eye(3).tolist()
    assert np.round(corners(bounds), 9).tolist() == [[0.6, 0.2, 0.2], [0, 1, 0], [0, 0.1, 0.9]]


def test_a_lattice_is_the_finest_that_fits() -> None:
    assert sorted(lattice(6, FREE).tolist()) == sorted(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    )
    assert len(lattice(9, FREE)) == 6
    assert len(lattice(10, FREE)) == 10
    narrow = Bounds(np.array([0.5, 0, 0]), np.ones(3))
    assert (lattice(10, narrow)[:, 0] >= 0.5).all()
    assert len(lattice(10, narrow)) == 10


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("low", "high"), [([0.3, 0.0], [0.3, 1.0]), ([0.0], [1.0]), ([0.2, 0.3, 0.5], [0.2, 0.3, 1.0])]
)
def test_a_lattice_of_the_one_point_that_bounds_leave_is_found_at_once(low: list[float], high: list[float]) -> None:
    bounds = Bounds(np.array(low), np.array(high))
    assert lattice(8, bounds) == pytest.approx(corners(bounds)[:1])


def test_a_lattice_between_narrow_bounds_is_fine_enough() -> None:
    bounds = Bounds(np.array([0.3, 0.0]), np.array([0.301, 1.0]))
    assert lattice(11, bounds)[:, 0].tolist() == pytest.approx(np.linspace(0.3, 0.301, 11).tolist())


def test_shares_that_4_digits_cannot_tell_stay_as_they_are() -> None:
    third = 1 / 3
    bounds = Bounds(np.array([third, 0, 0]), np.array([third, 1, 1]))
    assert rounded(np.array([third, third, third]), bounds)[0] == third
    assert rounded(np.array([third, third, third]), FREE) == (0.3334, 0.3333, 0.3333)
