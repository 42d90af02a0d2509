"""Packing conversations into rows, tokens moved, beside what else a user could take, in one process.

    pip install trl datasets          # or: pip install -e ".[bench]"
    python benchmarks/data/packing.py [--documents 1400000] [--rounds 3] [--without-trl]

Lengths are lognormal, as of instruction data (mean 523 tokens, cut at 4096); tokens and mask lie in memory, 5 bytes a
token. Contenders, which all give rows of whole documents with their lengths:
    sleddog   `pack` and `DocumentTokens.copy`, on one core
    python    the same without a C++ compiler
    trl       best-fit decreasing over the whole table, as `pack_dataset(strategy="bfd")` does with one batch; it is
              called without the `map` around it, which writes to a disk besides; assignment and moving are one
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

from ray_jobs.data import packing, slices
from ray_jobs.data.document_tokens import DocumentTokens
from ray_jobs.data.packing import lower_bound, pack

ROW_LENGTH = 4096


class Result(NamedTuple):
    """Seconds of each round, and the rows."""

    assign_s: list[float]
    move_s: list[float]
    num_rows: int


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
        start = time.perf_counter()
        packed = pack(documents.lengths, ROW_LENGTH)
        middle = time.perf_counter()
        rows = rows or DocumentTokens.of_length(documents.lengths[packed.documents])
        documents.copy(documents.starts[packed.documents], rows.lengths, rows, rows.starts)
        result.assign_s.append(middle - start)
        result.move_s.append(time.perf_counter() - middle)
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
    try:
        from trl.data_utils import _pack_bfd
    except ImportError as error:
        raise SystemExit(f"{error}: pip install trl datasets, or leave it out by --without-trl") from error
    offsets = pa.array(np.append(documents.starts, len(documents.tokens)), pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(values))
        for values in (documents.tokens, documents.trained.view(np.int8))
    ]
    table = pa.table(columns, names=["input_ids", "completion_mask"])
    start = time.perf_counter()
    rows = _pack_bfd(table, ROW_LENGTH)
    return Result([float("nan")], [time.perf_counter() - start], len(rows))


def floor(documents: DocumentTokens, rounds: int) -> Result:
    """Plain copies."""
    result = Result([], [], lower_bound(documents.lengths, ROW_LENGTH))
    target = DocumentTokens.of_length(documents.lengths)
    for _ in range(rounds):
        start = time.perf_counter()
        np.copyto(target.tokens, documents.tokens)
        np.copyto(target.trained, documents.trained)
        result.assign_s.append(0.0)
        result.move_s.append(time.perf_counter() - start)
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-trl", action="store_true")
    options = parser.parse_args()
    contenders: list[Callable[[DocumentTokens, int], Result]] = [floor, sleddog, in_python]
    documents = make_documents(options.documents)
    bound, size = lower_bound(documents.lengths, ROW_LENGTH), documents.tokens.nbytes + documents.trained.nbytes
    num_tokens = len(documents.tokens)
    print(f"{options.documents:,} documents, {num_tokens:,} tokens, {size / 1e9:.2f} GB, at least {bound:,} rows\n")
    np.ones(3 * size, dtype=np.uint8)  # a virtual machine is slow at memory that it has not used before
    sleddog(make_documents(1000), 1)  # compiles the kernels, if need be
    results = {contender.__name__: contender(documents, options.rounds) for contender in contenders}
    if not options.without_trl:
        results["trl"] = trl(documents, 1)
    ours = results["sleddog"]
    total = ours.assign_s[0] + ours.move_s[0]
    print("| packing | rows / bound | assign s | move s, new memory | again | total s | x |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        assign, first = result.assign_s[0], result.move_s[0]
        again = f"{min(result.move_s[1:]):.2f}" if len(result.move_s) > 1 else ""
        seconds = first + (0 if np.isnan(assign) else assign)
        print(
            f"| {name} | {result.num_rows / bound:.5f} | {'' if np.isnan(assign) else f'{assign:.2f}'} "
            f"| {first:.2f} | {again} | {seconds:.2f} | {seconds / total:.1f} |"
        )


if __name__ == "__main__":
    main()
