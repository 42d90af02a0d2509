"""The shuffle through a real Ray: shared bands, candidates and the corpus's files are those of one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs.data import band_shuffle
from ray_jobs.data.band_shuffle import shared_bands
from ray_jobs.data.bands import Candidates, Contents, find_candidates
from ray_jobs.data.minhash import keys_of_minima
from ray_jobs.data.parquet_files import Lines, parquet_writer, part_url
from ray_jobs.data.tasks import SIGNATURE_SCHEMA, SIGNATURES
from service.spec.data import DedupSpec

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
SPEC = DedupSpec()


def write_signatures(minima: np.ndarray, url: str, num_files: int = 3, spared: tuple[int, ...] = ()) -> Lines:
    """Parts of signatures in row groups of 50; a row that is spared has none."""
    positions = np.array_split(np.arange(len(minima)), num_files)
    for number, mine in enumerate(positions):
        with parquet_writer(part_url(f"{url}/{SIGNATURES}", number), SIGNATURE_SCHEMA) as writer:
            for start in range(0, len(mine), 50):
                rows = [None if row in spared else minima[row].tobytes() for row in mine[start : start + 50].tolist()]
                writer.write_table(pa.table([pa.array(rows, pa.binary())], schema=SIGNATURE_SCHEMA))
    sizes = [len(mine) for mine in positions]
    return Lines(np.repeat(np.arange(num_files), sizes), np.concatenate([np.arange(size) for size in sizes]))


def minima_of(kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    if kind == "same":
        return np.zeros((size, 125), dtype=np.uint32)
    return rng.integers(0, 4 if kind == "alike" else 2**32, (size, 125)).astype(np.uint32)[rng.integers(0, size, size)]


def assert_same(actual: Candidates, expected: Candidates) -> None:
    assert np.array_equal(actual.first_copy_N, expected.first_copy_N)
    assert np.array_equal(actual.indices_C, expected.indices_C)
    assert len(actual.bands) == len(expected.bands)
    for found, wanted in zip(actual.bands, expected.bands, strict=True):
        for some, same in zip(found, wanted, strict=True):
            assert some.dtype == same.dtype
            assert np.array_equal(some, same)


@pytest.mark.parametrize("kind", ["same", "alike", "copies"])
@pytest.mark.parametrize("keys_per_task", [300, 2500, band_shuffle.KEYS_PER_TASK])
def test_candidates_are_those_of_one_place(kind: str, keys_per_task: int, tmp_path: Path) -> None:
    """With parts of bands; with bands one by one; with all in one task. A tenth are copies, a row is spared."""
    size = 400
    minima = minima_of(kind, size)
    hashes = np.arange(size, dtype=np.uint64)
    hashes[360:] = hashes[100:140]
    content_hashes = np.stack([hashes, hashes], 1)
    is_spared = np.isin(np.arange(size), (7, 365))
    lines = write_signatures(minima, str(tmp_path), spared=(7, 365))
    contents = Contents.of(content_hashes, is_spared)
    assert len(contents.searched_M) == 358, "neither copies nor what a spared row holds"
    bands = shared_bands(lines.take(contents.searched_M), SPEC, str(tmp_path), keys_per_task)
    expected = find_candidates(content_hashes, keys_of_minima(minima, 25, 5), is_spared)
    assert len(expected.indices_C) > 100
    assert_same(Candidates.of(contents, bands), expected)


def test_no_contents_share_no_bands(tmp_path: Path) -> None:
    nowhere = Lines(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    candidates = Candidates.of(
        Contents.of(np.empty((0, 2), dtype=np.uint64)), shared_bands(nowhere, SPEC, str(tmp_path), 8)
    )
    assert (candidates.indices_C.tolist(), candidates.bands) == ([], [])
