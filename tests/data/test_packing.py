"""Packing: every document once, no row too long, as few rows as can be."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.data import packing
from ray_jobs.data.packing import Packing, lower_bound, pack
from tests.data.conftest import use_kernel


@pytest.fixture(params=["kernel", "python"], autouse=True)
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(packing, "_library", lambda: None)
    else:
        use_kernel(packing._library)


def as_lists(packed: Packing) -> list[list[int]]:
    return [row.tolist() for row in packed.rows(0, len(packed))]


def least_rows(lengths: list[int], row_length: int) -> int:
    """By trying everything."""

    def search(position: int, rooms: tuple[int, ...]) -> int:
        if position == len(lengths):
            return len(rooms)
        length = lengths[position]
        options = {
            tuple(sorted((*rooms[:row], room - length, *rooms[row + 1 :])))
            for row, room in enumerate(rooms)
            if room >= length
        }
        options.add(tuple(sorted((*rooms, row_length - length))))
        return min(search(position + 1, option) for option in options)

    return search(0, ())


def obvious_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing in its plainest form; of rows with equal room the one that got it last."""
    rows: list[list[int]] = []
    rooms: list[int] = []
    changed: list[int] = []
    for clock, document in enumerate(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[document]]
        if fitting:
            row = min(fitting, key=lambda row: (rooms[row], -changed[row]))
        else:
            row = len(rows)
            rows.append([])
            rooms.append(row_length)
            changed.append(clock)
        rows[row].append(document)
        rooms[row] -= lengths[document]
        changed[row] = clock
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_small_cases_against_trying_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    row_length = int(rng.integers(5, 12))
    lengths = rng.integers(1, row_length + 1, size=7)
    optimum = least_rows(lengths.tolist(), row_length)
    rows = pack(lengths, row_length)
    assert lower_bound(lengths, row_length) <= optimum <= len(rows)
    assert len(rows) <= (11 * optimum + 6) / 9, "the proven bound of best-fit decreasing"


@pytest.mark.parametrize("seed", range(20))
def test_assignment_equals_the_obvious_algorithm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(3, 1, size=300).astype(np.int64) + 1, 128)
    assert as_lists(pack(lengths, 128)) == obvious_best_fit(lengths.tolist(), 128)


def test_every_document_lies_in_one_row_and_fits() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.8, 1, size=20_000).astype(np.int64) + 1, 4096)
    packed = pack(lengths, 4096)
    rows = as_lists(packed)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert max(lengths[row].sum() for row in rows) <= 4096
    assert len(rows) <= 1.001 * lower_bound(lengths, 4096)
    assert rows[17:40] == [row.tolist() for row in packed.rows(17, 40)]


def test_edges() -> None:
    assert as_lists(pack(np.array([], dtype=np.int64), 8)) == []
    assert as_lists(pack(np.array([8, 8]), 8)) == [[0], [1]]
    assert as_lists(pack(np.array([3, 5]), 8)) == [[1, 0]]
    assert lower_bound(np.array([3, 5, 1]), 8) == 2
    for bad in ([0, 3], [9]):
        with pytest.raises(ValueError, match="lengths must be between 1 and 8"):
            pack(np.array(bad), 8)
