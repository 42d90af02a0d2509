"""Packing conversations into rows, tokens moved, beside what else a user could take, in one process.

    make bench-peers                  # installs what it is compared with
    python benchmarks/data/packing.py [--documents 1400000] [--rounds 3] [--peers trl axolotl]

Seconds are the processor's, so that other load matters little; each contender has one thread.
Lengths are lognormal, as of instruction data (mean 523 tokens, cut at 4096); tokens and mask lie in memory, 5 bytes a
token. Contenders, which all give rows of whole documents with their lengths:
    sleddog   `pack` and `DocumentTokens.copy`, on one core
    python    the same without a C++ compiler
    trl       best-fit decreasing over the whole table, as `pack_dataset(strategy="bfd")` does with one batch; it is
              called without the `map` around it, which writes to a disk besides; assignment and moving are one
    axolotl   its multipack, which only assigns (tokens are moved while training): first fit of 100,000 lengths at a
              time and at most 200 to a row, as is its default
    floor     one copy of as many bytes, in order

The first round writes to memory that the process gets anew, as a task does; the others to the same memory again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
from peers import Peer, installed

from ray_jobs.data import packing, slices
from ray_jobs.data.document_tokens import DocumentTokens
from ray_jobs.data.packing import lower_bound, pack

ROW_LENGTH = 4096


class Result(NamedTuple):
    """Seconds of each round, and the rows."""

    assign_s: list[float]
    move_s: list[float]
    num_rows: int


Contender = Callable[[DocumentTokens, int], Result]
"""From documents and the number of rounds."""


def make_documents(number: int) -> DocumentTokens:
    """Documents of lengths as they occur, with any tokens."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.8, 0.95, number), 1, ROW_LENGTH).astype(np.int64)
    documents = DocumentTokens.of_length(lengths)
    documents.tokens[:] = np.resize(rng.integers(0, 32000, 10**6, dtype=np.int32), len(documents.tokens))
    documents.trained[:] = np.resize(rng.random(10**6) < 0.57, len(documents.trained))
    return documents


def sleddog(documents: DocumentTokens, rounds: int) -> Result:
    """Assign and copy."""
    result = Result([], [], 0)
    rows: DocumentTokens | None = None
    for _ in range(rounds):
        start = time.process_time()
        packed = pack(documents.lengths, ROW_LENGTH)
        middle = time.process_time()
        rows = rows or DocumentTokens.of_length(documents.lengths[packed.documents])
        documents.copy(documents.starts[packed.documents], rows.lengths, rows, rows.starts)
        result.assign_s.append(middle - start)
        result.move_s.append(time.process_time() - middle)
    check(documents, rows, packed)
    return result._replace(num_rows=len(packed))


def check(documents: DocumentTokens, rows: DocumentTokens | None, packed: packing.Packing) -> None:
    """Compare some of the documents with what lies in the rows."""
    assert rows is not None
    starts, targets = documents.starts[packed.documents], rows.starts
    for place in np.linspace(0, len(starts) - 1, 1000).astype(int):
        length = rows.lengths[place]
        for source, target in ((documents.tokens, rows.tokens), (documents.trained, rows.trained)):
            assert (source[starts[place] :][:length] == target[targets[place] :][:length]).all()


def in_python(documents: DocumentTokens, rounds: int) -> Result:
    """Without the kernels."""
    none = {"return_value": None}
    with mock.patch.object(packing, "_library", **none), mock.patch.object(slices, "_library", **none):
        return sleddog(documents, rounds)


def trl(documents: DocumentTokens, _rounds: int) -> Result:
    """Once: it takes long."""
    from trl.data_utils import _pack_bfd

    offsets = pa.array(np.append(documents.starts, len(documents.tokens)), pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(values))
        for values in (documents.tokens, documents.trained.view(np.int8))
    ]
    table = pa.table(columns, names=["input_ids", "completion_mask"])
    start = time.process_time()
    rows = _pack_bfd(table, ROW_LENGTH)
    return Result([float("nan")], [time.process_time() - start], len(rows))


def axolotl(documents: DocumentTokens, rounds: int) -> Result:
    """Assign only, in one process."""
    from axolotl.utils.samplers.multipack import pack_parallel

    result = Result([], [float("nan")], 0)
    lengths = documents.lengths.astype(np.int32)
    pack_parallel(lengths[:100], ROW_LENGTH, 100, 200, num_processes=1)  # compiles
    for _ in range(rounds):
        start = time.process_time()
        rows = pack_parallel(lengths, ROW_LENGTH, group_size=100_000, bin_size=200, num_processes=1)
        result.assign_s.append(time.process_time() - start)
    assert sum(map(len, rows)) == len(lengths)
    return result._replace(num_rows=len(rows))


PEERS: dict[str, Peer[Contender]] = {"trl": Peer(trl, "trl"), "axolotl": Peer(axolotl, "axolotl")}


def floor(documents: DocumentTokens, rounds: int) -> Result:
    """Plain copies."""
    result = Result([], [], lower_bound(documents.lengths, ROW_LENGTH))
    target = DocumentTokens.of_length(documents.lengths)
    for _ in range(rounds):
        start = time.process_time()
        np.copyto(target.tokens, documents.tokens)
        np.copyto(target.trained, documents.trained)
        result.assign_s.append(0.0)
        result.move_s.append(time.process_time() - start)
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    options = parser.parse_args()
    peers = installed(PEERS, options.peers)
    contenders: list[Contender] = [floor, sleddog, in_python]
    documents = make_documents(options.documents)
    bound, size = lower_bound(documents.lengths, ROW_LENGTH), documents.tokens.nbytes + documents.trained.nbytes
    num_tokens = len(documents.tokens)
    print(f"{options.documents:,} documents, {num_tokens:,} tokens, {size / 1e9:.2f} GB, at least {bound:,} rows\n")
    np.ones(3 * size, dtype=np.uint8)  # a virtual machine is slow at memory that it has not used before
    sleddog(make_documents(1000), 1)  # compiles the kernels, if need be
    results = {contender.__name__: contender(documents, options.rounds) for contender in contenders}
    results |= {name: contender(documents, options.rounds) for name, contender in peers.items()}
    print("| packing | rows / bound | assign s | move s, new memory | again | total s | x |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        report(name, result, results["sleddog"], bound)


def report(name: str, result: Result, ours: Result, bound: int) -> None:
    """Print a row; how many times as long it took is of what both do: all, or assigning."""
    assign, first = result.assign_s[0], result.move_s[0]
    again = f"{min(result.move_s[1:]):.2f}" if len(result.move_s) > 1 else ""
    seconds = float(np.nansum([assign, first]))
    our_seconds = ours.assign_s[0] + (0 if np.isnan(first) else ours.move_s[0])
    shown = ("" if np.isnan(value) else f"{value:.2f}" for value in (assign, first))
    print(
        f"| {name} | {result.num_rows / bound:.5f} | {' | '.join(shown)} | {again} "
        f"| {seconds:.2f} | {seconds / our_seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
