"""Shared bands found in one place, which holds all keys, beside the shuffle over Ray tasks: time and driver's memory.

    python benchmarks/data/band_shuffle.py [--contents 1000000] [--keys-per-task 8388608]

Signatures are synthetic: 125 random minima a content, and of every tenth content those of the one before it in about 90
of 100 places. Both ways read the same parts and must give the same buckets. Memory is the growth of the process's
resident size at its largest, as Linux tells it, each way in a process of its own; what the shuffle has in Ray's object
store is not the driver's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from ray_jobs.data.band_shuffle import KEYS_PER_TASK, shared_bands
from ray_jobs.data.bands import Buckets, buckets_of, entries_of
from ray_jobs.data.minhash import bands_and_rows, keys_of_minima
from ray_jobs.data.parquet_files import Lines, parquet_writer, part_url
from ray_jobs.data.tasks import SIGNATURE_SCHEMA, SIGNATURES, read_signatures
from service.spec.data import DedupSpec

SPEC, CONTENTS_PER_FILE, ROW_GROUP = DedupSpec(), 100_000, 512


def write_signatures(url: str, num_contents: int) -> None:
    """Parts as preparation writes them."""
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, num_contents, CONTENTS_PER_FILE)):
        size = min(CONTENTS_PER_FILE, num_contents - start)
        minima = rng.integers(0, 2**32, (size, 125), dtype=np.uint32)
        edited = np.arange(9, size, 10)
        minima[edited] = np.where(rng.random((len(edited), 125)) < 0.9, minima[edited - 1], minima[edited])
        rows = pa.table([pa.array([line.tobytes() for line in minima], pa.binary())], schema=SIGNATURE_SCHEMA)
        with parquet_writer(part_url(f"{url}/{SIGNATURES}", number), SIGNATURE_SCHEMA) as writer:
            writer.write_table(rows, row_group_size=ROW_GROUP)


def lines_of(num_contents: int) -> Lines:
    """Where the contents lie."""
    places = np.arange(num_contents)
    return Lines((places // CONTENTS_PER_FILE).astype(np.int32), places % CONTENTS_PER_FILE)


def one_place(lines: Lines, url: str) -> list[Buckets]:
    """All keys in this process."""
    num_bands, num_rows = bands_and_rows(SPEC)
    size, done = len(lines.file), 0
    keys = np.empty((size, num_bands), dtype=np.uint64)
    for minima in read_signatures(lines, url):
        keys[done : done + len(minima)] = keys_of_minima(minima, num_bands, num_rows)
        done += len(minima)
    return [buckets_of(entries_of(column, 0, size), size) for column in keys.T]


def megabytes_at_most() -> float:
    """This process's largest resident size."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def measure(way: str, url: str, num_contents: int, keys_per_task: int) -> None:
    """Print seconds, megabytes and a digest of what is found."""
    lines = lines_of(num_contents)
    if way == "shuffle":
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        shared_bands(lines.take(slice(100)), SPEC, url, keys_per_task)  # starts the workers
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before = megabytes_at_most()
    start = time.perf_counter()
    bands = one_place(lines, url) if way == "one place" else shared_bands(lines, SPEC, url, keys_per_task)
    seconds = time.perf_counter() - start
    megabytes = megabytes_at_most() - before
    digest = hashlib.sha256(b"".join(array.tobytes() for band in bands for array in band)).hexdigest()
    members = sum(len(members) for members, _ in bands)
    print(f"| {num_contents:,} | {way} | {seconds:.1f} | {megabytes:.0f} | {members:,} | {digest[:12]} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", type=int, default=1_000_000)
    parser.add_argument("--keys-per-task", type=int, default=KEYS_PER_TASK)
    parser.add_argument("--way", choices=["one place", "shuffle"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options.url, options.contents, options.keys_per_task)
        return
    print("| contents | way | s | driver, MB | members of buckets | digest |\n|" + " --- |" * 6, flush=True)
    with tempfile.TemporaryDirectory() as url:
        write_signatures(url, options.contents)
        for way in ("one place", "shuffle"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--url", url]
            subprocess.run(command, check=True)  # noqa: S603  our own


if __name__ == "__main__":
    main()
