"""Finding shared bands over Ray tasks, so that no process holds the band keys of all conversations.

    split_keys      reads the signatures of a slice of the contents, computes their band keys and parts these by band
                    and by their upper bits
    find_buckets    sorts a part of some bands, from all slices, and gives the driver what is shared

Memory of a task, with M contents, B bands and K = `KEYS_PER_TASK`, at most, in bytes:

    split_keys      24 K (keys, and the entries of a group of bands twice) + one row group of signatures
    find_buckets    32 (K + L) (entries, joined, sorted, and which of them are shared), L the largest bucket

A bucket is never parted: L is M where all share a band, for no more than that band's task. The driver holds the places
of the contents and what is shared: 2 numbers of 4 bytes a member of a bucket. Entries are in Ray's object store on
their way, 8 M B bytes, and on its disks where that is too small. The result is that of `bands.find_candidates`, bit for
bit, whatever K is.
"""

from __future__ import annotations

import numpy as np
import ray

from ray_jobs.data.bands import Buckets, Shuffle, buckets_of, joined
from ray_jobs.data.minhash import bands_and_rows, keys_of_minima
from ray_jobs.data.parquet_files import Lines
from ray_jobs.data.tasks import read_signatures
from service.spec.data import DedupSpec

KEYS_PER_TASK = 2**23
"""K: 200 and 270 MB a task. Up to 130 million contents (16 parts) each of a slice's pieces is larger than the 100 kB
below which Ray would send it to the driver."""


def shared_bands(lines_M: Lines, spec: DedupSpec, corpus_url: str, keys_per_task: int) -> list[Buckets]:
    """Each band's buckets of places among some contents; Ray is connected.

    Args:
        lines_M: where they lie.
        spec: decides the bands.
        corpus_url: whose signature parts to read.
        keys_per_task: K, above.
    """
    num_bands, _ = bands_and_rows(spec)
    shuffle = Shuffle(len(lines_M.file), num_bands, keys_per_task)
    num_pieces = len(shuffle.groups) * shuffle.num_parts
    split = _split_keys.options(num_returns=num_pieces)
    pieces = []
    for start, stop in shuffle.slices:
        refs = split.remote(lines_M.take(slice(start, stop)), start, shuffle, spec, corpus_url)
        pieces.append(refs if num_pieces > 1 else [refs])
    found = [_find_buckets.remote(shuffle.size, *mine) for mine in zip(*pieces, strict=True)]
    del pieces
    bands: list[Buckets] = []
    for first in range(0, len(found), shuffle.num_parts):
        parts = ray.get(found[first : first + shuffle.num_parts])
        bands += [joined(band) for band in zip(*parts, strict=True)]
    return bands


@ray.remote  # type: ignore[untyped-decorator]
def _split_keys(
    lines: Lines, first_place: int, shuffle: Shuffle, spec: DedupSpec, corpus_url: str
) -> list[np.ndarray] | np.ndarray:
    """What `Shuffle.split` gives of a slice; Ray takes several objects as a list, and one as it is."""
    num_bands, num_rows = bands_and_rows(spec)
    keys = np.empty((len(lines.file), num_bands), dtype=np.uint64)
    done = 0
    for minima in read_signatures(lines, corpus_url):
        keys[done : done + len(minima)] = keys_of_minima(minima, num_bands, num_rows)
        done += len(minima)
    if done != len(lines.file):
        raise AssertionError(f"{len(lines.file)} signatures should lie in {corpus_url}, {done} do")
    pieces = shuffle.split(keys, first_place)
    return pieces if len(pieces) > 1 else pieces[0]


@ray.remote  # type: ignore[untyped-decorator]
def _find_buckets(size: int, *pieces: np.ndarray) -> list[Buckets]:
    """Buckets of each band of a group, in one part of it."""
    return [buckets_of(np.concatenate(band), size) for band in zip(*pieces, strict=True)]
