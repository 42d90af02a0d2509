"""What signatures alone tell."""

from __future__ import annotations

import numpy as np
import pytest

from ray_jobs.data.duplicates import dropped_at


@pytest.mark.parametrize(("threshold", "dropped"), [(0.5, 3), (0.6, 2), (0.7, 2), (0.8, 1), (0.95, 0)])
def test_a_threshold_drops_what_shares_as_many_minima(threshold: float, dropped: int) -> None:
    """Four signatures that agree with the first in 90, 75 and 55 of 100 minima, in runs so that they share bands."""
    first = np.arange(100, dtype=np.uint32)
    others = [
        np.where(np.arange(100) < same, first, first + 1000 * number) for number, same in enumerate((90, 75, 55), 1)
    ]
    assert dropped_at(threshold, np.array([first, *others], dtype=np.uint32)) == dropped
