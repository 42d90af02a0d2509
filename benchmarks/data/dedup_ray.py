"""Reading, signing and deduplicating raw files through Ray Data beside one process that does the same without Ray.

    python benchmarks/data/dedup_ray.py [--documents 400000] [--files 8]

Both run the same functions on the same JSON lines: each row is parsed, normalised, hashed and signed, the band keys of
all are compared, and candidates are verified by their text. Ray has the machine's cores, the process one. What a job's
preparation tells of the search is measured on top.
The documents are those of `dedup.py`, repeated with a word exchanged in every tenth, so that a copy is no near one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from dedup import pieces

from ray_jobs.data import duplicates
from ray_jobs.data.bands import find_candidates
from ray_jobs.data.corpus_builder import CorpusBuilder
from ray_jobs.data.dedup import find_duplicates
from ray_jobs.data.duplicates import DuplicateSearch, Rows
from ray_jobs.data.minhash import bands_and_rows, keys_of_minima
from ray_jobs.data.tasks import read_file, read_signatures
from service.rows.sources import SourceFile, digest
from service.spec.job import JobSpec


def write_files(directory: Path, num_documents: int, num_files: int) -> None:
    """JSON lines of prompt and completion."""
    rng = random.Random(0)  # noqa: S311  no secret
    base = list(itertools.islice(pieces(), num_documents))
    sinks = [(directory / f"part-{number:03d}.jsonl").open("w") for number in range(num_files)]
    for number in range(num_documents):
        words = base[number % len(base)].split(" ")
        if number >= len(base):
            for place in range(rng.randrange(10), len(words), 10):
                words[place] = f"w{rng.randrange(10**6)}"
        text = " ".join(words)
        json.dump({"prompt": text[:300], "completion": text[300:] or "-"}, sinks[number % num_files])
        sinks[number % num_files].write("\n")
    for sink in sinks:
        sink.close()


def spec_of(directory: Path) -> JobSpec:
    """A job on these files."""
    source = {"name": "pieces", "category": "code", "form": "prompt_completion", "uri": f"file://{directory}/*.jsonl"}
    return JobSpec.model_validate(
        {
            "name": "bench",
            "model": {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe"}},
            "data": {"sources": [source], "on_bad_row": "skip"},
        }
    )


def one_process(spec: JobSpec, files: list[SourceFile], url: str) -> int:
    """Rows dropped, without Ray."""
    tables = [
        table
        for number, file in enumerate(files)
        for table in read_file(pa.Table.from_pylist([{"file": number, **asdict(file)}]), spec.data, None, url)
    ]
    rows, dedup = (
        rows_of(pa.concat_tables(tables).sort_by([("file", "ascending"), ("row", "ascending")])),
        spec.data.dedup,
    )
    assert dedup is not None
    keys = [keys_of_minima(minima, *bands_and_rows(dedup)) for minima in read_signatures(rows.lines, url)]
    candidates = find_candidates(rows.content_hashes, np.concatenate(keys))
    sets = duplicates._shingle_sets(rows.lines.take(candidates.indices_C), dedup, url)  # noqa: SLF001
    found = find_duplicates(candidates, sets.jaccard, dedup.threshold, rows.completion_chars_N)
    return len(found.dropped_D)


def rows_of(lines: pa.Table) -> Rows:
    """Of the keys of a corpus of one source."""
    keys = lines.filter(pc.is_valid(lines["position"]))
    return Rows.of(keys, np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool))


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=400_000)
    parser.add_argument("--files", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "raw"
        raw.mkdir()
        write_files(raw, options.documents, options.files)
        spec = spec_of(raw)
        files = [SourceFile(0, f"file://{path}", "jsonl") for path in sorted(raw.iterdir())]
        start = time.perf_counter()
        dropped = one_process(spec, files, f"file://{temporary}/alone")
        alone = time.perf_counter() - start

        os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
        num_cpus = len(os.sched_getaffinity(0))
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        builder = CorpusBuilder(
            spec,
            files=[(file, digest(file.url)) for file in files],
            benchmarks=None,
            tokenizer={},
            url=f"file://{temporary}/ray",
            progress=lambda *_: None,
        )
        start = time.perf_counter()
        lines = builder._read()  # noqa: SLF001
        read = time.perf_counter() - start
        assert spec.data.dedup is not None
        search = DuplicateSearch(spec.data.dedup, rows_of(lines), f"file://{temporary}/ray")
        found = search.run()
        through_ray = time.perf_counter() - start
        described = search.describe(found, ["pieces"])
        search.write_receipt(found, ["pieces"], [file.url for file in files])
        told = time.perf_counter() - start - through_ray
        assert len(found.dropped_D) == dropped, "both must drop the same rows"
        print(f"{options.documents:,} documents in {options.files} files, {dropped:,} dropped")
        print(f"one process {alone:.1f} s, Ray on {num_cpus} cores {through_ray:.1f} s: {through_ray / alone:.2f} x")
        print(f"of these to read and sign {read:.1f} s, to search {through_ray - read:.1f} s")
        print(f"sample, other thresholds and receipt {told:.1f} s more: {told / through_ray:.0%}")
        for line in described["thresholds"]:
            print("threshold {threshold}: {estimated_dropped:,} +- {standard_error:,}".format(**line))


if __name__ == "__main__":
    main()
