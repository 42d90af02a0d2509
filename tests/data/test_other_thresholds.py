"""What other thresholds would drop, against all pairs of signatures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ray_jobs.data import other_thresholds
from ray_jobs.data.minhash import keys_of_minima
from ray_jobs.data.other_thresholds import THRESHOLDS, Sample, ThresholdEstimate, nearest_before
from tests.data.test_band_shuffle import write_signatures


def edited_minima(size: int, seed: int = 0) -> np.ndarray:
    """Signatures that keep 0 to 100 of 100 minima of an earlier one, whichever those are."""
    rng = np.random.default_rng(seed)
    minima = rng.integers(0, 2**32, (size, 100)).astype(np.uint32)
    for row in range(1, size):
        kept = rng.permutation(100)[: rng.integers(0, 101)]
        minima[row, kept] = minima[rng.integers(max(0, row - 50), row), kept]
    return minima


def reference(minima: np.ndarray) -> np.ndarray:
    """Largest share of equal minima of each with all earlier ones of which it shares one of 33 bands of 3."""
    keys, nearest = keys_of_minima(minima, 33, 3), np.zeros(len(minima))
    for row in range(len(minima)):
        shares = (keys[:row] == keys[row]).any(axis=1)
        nearest[row] = (minima[:row][shares] == minima[row]).mean(axis=1).max(initial=0)
    return nearest


def capped(similarity: np.ndarray) -> np.ndarray:
    """Above the highest threshold it does not matter how much."""
    return np.minimum(similarity, THRESHOLDS[-1])


def test_the_nearest_earlier_content_is_that_of_all_pairs_however_they_are_sliced() -> None:
    minima = edited_minima(400)
    expected = reference(minima)
    assert all(20 < (expected >= threshold).sum() < 380 for threshold in THRESHOLDS)
    places = np.arange(400)
    whole = nearest_before(minima, 0, 400, Sample(places, minima))
    assert np.array_equal(capped(whole), capped(expected))
    some = np.flatnonzero(np.random.default_rng(1).random(400) < 0.3)
    parts = [
        nearest_before(minima[start : start + 90], start, 400, Sample(some, minima[some]))
        for start in range(0, 400, 90)
    ]
    assert np.array_equal(capped(np.maximum.reduce(parts)), capped(expected[some]))


def test_a_bucket_of_unlike_contents_is_not_gone_through() -> None:
    """Of a band in common to all, only the nearest are compared: 17 before it lies the one that is alike."""
    minima = np.random.default_rng(0).integers(0, 2**32, (18, 100)).astype(np.uint32)
    minima[:, :3] = 1
    minima[17, 3:70] = minima[0, 3:70]
    keys = keys_of_minima(minima, 33, 3)
    assert (keys[0] == keys[17]).sum() > 1
    minima[17, 5:70:3] += 1  # no other band is shared, but 45 minima are
    assert 0 < nearest_before(minima, 0, 18, Sample(np.array([17]), minima[17:]))[0] < 0.1
    assert nearest_before(minima[:1], 0, 18, Sample(np.array([17]), minima[17:]))[0] > 0.4


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_counts_are_those_of_all_or_within_the_error_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minima = edited_minima(1500)
    expected = reference(minima)
    lines = write_signatures(minima, str(tmp_path))
    monkeypatch.setattr(other_thresholds, "CONTENTS_PER_TASK", 400)
    order = np.random.default_rng(2).permutation(1500)

    def estimate() -> list[dict[str, int]]:
        return ThresholdEstimate(lines, order, 11, str(tmp_path)).result()

    assert estimate() == [
        {"threshold": threshold, "estimated_dropped": 11 + int((expected >= threshold).sum()), "standard_error": 0}
        for threshold in THRESHOLDS
    ]
    monkeypatch.setattr(other_thresholds, "SAMPLE_SIZE", 300)
    for line in estimate():
        right = int((expected >= line["threshold"]).sum())
        # of 300 drawn without replacement
        deviation = 1500 * (right / 1500 * (1 - right / 1500) / 300 * 0.8) ** 0.5
        assert 0 < abs(line["estimated_dropped"] - 11 - right) < 4 * deviation
        assert line["standard_error"] == pytest.approx(deviation, rel=0.2)
    empty = ThresholdEstimate(lines.take(slice(0)), order[:0], 5, str(tmp_path)).result()
    assert [line["estimated_dropped"] for line in empty] == [5] * 5
