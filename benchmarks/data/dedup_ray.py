"""Reading, signing and deduplicating raw files through Ray Data beside one process that does the same without Ray.

    python benchmarks/data/dedup_ray.py [--documents 400000] [--files 8]

Both run the same functions on the same JSON lines: each row is parsed, normalised, hashed and signed, the band keys of
all are compared, and candidates are verified by their text. Ray has the machine's cores, the process one.
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
from ray_jobs.data.corpus_builder import CorpusBuilder
from ray_jobs.data.duplicates import DuplicateSearch, Rows
from ray_jobs.data.sources import SourceFile
from ray_jobs.data.tasks import read_file
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
    return num_dropped(spec, pa.concat_tables(tables).sort_by([("file", "ascending"), ("row", "ascending")]), url)


def num_dropped(spec: JobSpec, lines: pa.Table, url: str) -> int:
    """Rows dropped of a corpus whose keys are these."""
    keys = lines.filter(pc.is_valid(lines["position"]))
    assert spec.data.dedup is not None
    rows = Rows.of(keys, np.zeros(len(keys), dtype=np.int64))
    return len(DuplicateSearch(spec.data.dedup, rows, url).run().dropped_D)


class _Here:
    """Runs a remote function's body at once, in this process."""

    def __init__(self, function: object) -> None:
        self._function = function._function  # type: ignore[attr-defined]  # noqa: SLF001

    def remote(self, *arguments: object) -> object:
        """The result itself."""
        return self._function(*arguments)


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
        with_task, with_get = duplicates._similarity_task, ray.get  # noqa: SLF001
        duplicates._similarity_task, ray.get = _Here(with_task), lambda results: results  # noqa: SLF001
        dropped = one_process(spec, files, f"file://{temporary}/alone")
        duplicates._similarity_task, ray.get = with_task, with_get  # noqa: SLF001
        alone = time.perf_counter() - start

        os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        builder = CorpusBuilder(spec, files, None, f"file://{temporary}/ray", lambda *_: None)
        start = time.perf_counter()
        dropped_through_ray = num_dropped(spec, builder._read(), f"file://{temporary}/ray")  # noqa: SLF001
        through_ray = time.perf_counter() - start
        assert dropped_through_ray == dropped, "both must drop the same rows"
        print(f"{options.documents:,} documents in {options.files} files, {dropped:,} dropped")
        print(
            f"one process {alone:.1f} s, Ray on {os.cpu_count()} cores {through_ray:.1f} s: {through_ray / alone:.2f} x"
        )


if __name__ == "__main__":
    main()
