"""Points of a simplex with bounds on each share.

Points come from a unit cube by stick breaking: the first share is drawn from its marginal, the second from what is
left, and so on, each truncated to what the bounds leave possible. So no point is ever rejected, however tight the
bounds are. Without upper bounds equal volumes of the cube give equal volumes of the simplex; with them the density
differs somewhat, which only shifts where the search begins. Rejected were rejection sampling, which takes for ever
between tight bounds, and sorted spacings, which know no bounds.

Shape suffixes: K categories, N points, D dimensions of a cube.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

RESOLUTION = 10_000
"""Shares are rounded to one part in so many, 0.01 % of the mix: far below what a run's order of rows decides."""


class Bounds(NamedTuple):
    """Least and greatest shares; some point must lie between them.

    Attributes:
        low_K: least share of each category, sum at most 1.
        high_K: greatest, sum at least 1.
    """

    low_K: np.ndarray
    high_K: np.ndarray


def quasi_random(num_points: int, dimensions: int, seed: int) -> np.ndarray:
    """Low-discrepancy points of the unit cube, [N, D]: the first of a scrambled Sobol sequence.

    For 4 to 20 points, a round's size, in 2 to 5 dimensions its centred discrepancy was 0.1 to 0.5 of that of random
    points, and below that of Roberts' R-sequence; other numbers than powers of 2 do no harm.
    """
    if not dimensions:
        return np.empty((num_points, 0))
    exponent = max(0, num_points - 1).bit_length()
    points_ND: np.ndarray = qmc.Sobol(dimensions, rng=seed).random_base2(exponent)[:num_points]
    return points_ND


def from_cube(cube_ND: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Points of the simplex.

    Args:
        cube_ND: points in [0, 1]^(K - 1).
        bounds: of the shares.

    Returns:
        [N, K], within the bounds; each sums to 1.
    """
    low_K, high_K = bounds
    num_points, num_shares = len(cube_ND), len(low_K)
    points_NK = np.empty((num_points, num_shares))
    left_N = np.full(num_points, 1 - low_K.sum())
    room_K = high_K - low_K
    for place in range(num_shares - 1):
        others = num_shares - place - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            least_N = np.where(left_N > 0, (left_N - room_K[place + 1 :].sum()) / left_N, 0).clip(0, 1)
            most_N = np.where(left_N > 0, room_K[place] / left_N, 0).clip(least_N, 1)
        # the first of `others` + 1 uniform spacings exceeds x with probability (1 - x)^others
        above_least, above_most = (1 - least_N) ** others, (1 - most_N) ** others
        spacing_N = 1 - (above_least + cube_ND[:, place] * (above_most - above_least)) ** (1 / others)
        points_NK[:, place] = spacing_N * left_N
        left_N = left_N - points_NK[:, place]
    points_NK[:, -1] = left_N
    clipped_NK: np.ndarray = np.clip(points_NK + low_K, low_K, high_K)
    return clipped_NK


def nearest(point_K: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The point within bounds and on the simplex that is nearest to a point of space.

    It is the point less one number for all shares, cut to the bounds; their sum falls with that number, linearly
    between those at which some share meets a bound.
    """
    low_K, high_K = bounds
    kinks = np.sort(np.concatenate([point_K - high_K, point_K - low_K]))
    sums = np.clip(point_K - kinks[:, None], low_K, high_K).sum(axis=1)
    number = np.interp(-1.0, -sums, kinks)
    found_K: np.ndarray = np.clip(point_K - number, low_K, high_K)
    return found_K


def corners(bounds: Bounds) -> np.ndarray:
    """For each category the mix nearest to that category alone, [K, K]."""
    return np.array([nearest(unit_K, bounds) for unit_K in np.eye(len(bounds.low_K))])


def lattice(max_points: int, bounds: Bounds) -> np.ndarray:
    """The finest regular lattice on the simplex of which at most `max_points` lie within bounds, [N, K].

    At least the points with shares 0 and 1 are tried, moved to the nearest within bounds if none of them lies there.
    """
    best_NK = np.unique(np.round(corners(bounds), 12), axis=0)
    for parts in range(1, RESOLUTION + 1):
        least = np.ceil((bounds.low_K - 1e-9) * parts).astype(int).tolist()
        most = np.floor((bounds.high_K + 1e-9) * parts).astype(int).tolist()
        inside = list(islice(_compositions(parts, least, most), max_points + 1))
        if len(inside) > max_points:
            break
        if inside:
            best_NK = np.array(inside) / parts
    return best_NK


def _compositions(total: int, least: Sequence[int], most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All ways to write a total as a sum of whole numbers within bounds; none is tried that cannot be one."""
    if len(least) == 1:
        if least[0] <= total <= most[0]:
            yield (total,)
        return
    for first in range(max(least[0], total - sum(most[1:])), min(most[0], total - sum(least[1:])) + 1):
        for others in _compositions(total - first, least[1:], most[1:]):
            yield (first, *others)


def rounded(point_K: np.ndarray, bounds: Bounds) -> tuple[float, ...]:
    """Shares to 4 digits that sum to 1 and keep to the bounds, by largest remainder.

    Bounds that leave no such shares, such as a share fixed at 1/3, are met by the shares as they are.
    """
    low_K = np.ceil(bounds.low_K * RESOLUTION - 1e-6)
    high_K = np.floor(bounds.high_K * RESOLUTION + 1e-6)
    if (low_K > high_K).any() or low_K.sum() > RESOLUTION or high_K.sum() < RESOLUTION:
        return tuple(point_K.tolist())
    units_K = np.clip(np.floor(point_K * RESOLUTION), low_K, high_K)
    while missing := RESOLUTION - int(units_K.sum()):
        remainder_K = point_K * RESOLUTION - units_K
        if missing > 0:
            units_K[np.where(units_K < high_K, remainder_K, -np.inf).argmax()] += 1
        else:
            units_K[np.where(units_K > low_K, remainder_K, np.inf).argmin()] -= 1
    return tuple((units_K / RESOLUTION + 0.0).tolist())  # no -0.0, which a clip to 0 may leave
