"""What the stages of preparation cannot do without: processor seconds of each part alone, on a sample of the data."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from synthetic import SOURCES, contents
from tokenizers import Tokenizer

from ray_jobs.data.minhash import band_keys, bands_and_rows
from ray_jobs.data.tokenise import train_bpe
from service.rows.sources import digest
from service.spec.data import DedupSpec

ROWS_OF_SAMPLE = 9000


class Floors:
    """Measures on some rows of each source.

    Args:
        raw: directory of the corpus.
        num_bytes: of all its files.
    """

    def __init__(self, raw: Path, num_bytes: int) -> None:
        self._first_files = [raw / f"{source.name}-00.jsonl" for source in SOURCES]
        self._lines = [
            line
            for path in self._first_files
            for line in itertools.islice(path.open("rb"), ROWS_OF_SAMPLE // len(SOURCES))
        ]
        rows = [contents(json.loads(line)) for line in self._lines]
        self._turns, self._texts = [turn for row in rows for turn in row], ["\n".join(row) for row in rows]
        self._num_bytes = num_bytes
        self._times = num_bytes / sum(map(len, self._lines))
        """How often the sample goes into the corpus."""

    def hash_sources(self) -> float:
        """SHA-256 of the files, through the function that the stage calls."""
        seconds = _seconds(lambda: [digest(f"file://{path}") for path in self._first_files])
        size = sum(path.stat().st_size for path in self._first_files)
        return seconds * self._num_bytes / size

    def read_and_sign(self) -> float:
        """JSON, a hash of each content, MinHash, and Parquet of the text; and the files are hashed again."""
        band_keys(self._texts[:10], DedupSpec())  # compiles the kernel
        seconds = _seconds(lambda: [json.loads(line) for line in self._lines])
        seconds += _seconds(lambda: [hashlib.sha256(text.encode()).digest() for text in self._texts])
        seconds += _seconds(lambda: band_keys(self._texts, DedupSpec()))
        seconds += _seconds(lambda: _write_parquet(pa.table({"contents": self._turns})))
        return self.hash_sources() + seconds * self._times

    def deduplicate(self, num_rows: int) -> float:
        """Sorting the keys of each band."""
        num_bands, _ = bands_and_rows(DedupSpec())
        keys = np.random.default_rng(0).integers(0, 2**63, (num_bands, num_rows))
        return _seconds(lambda: keys.sort(axis=1))

    def train_tokenizer(self, vocab_size: int) -> float:
        """On the sample, and as much longer as the corpus is."""
        with tempfile.TemporaryDirectory() as scratch:
            return _seconds(lambda: train_bpe(self._texts, vocab_size, Path(scratch))) * self._times

    def tokenise(self, tokenizer_url: str) -> float:
        """Encoding the turns."""
        encode = Tokenizer.from_file(f"{tokenizer_url.removeprefix('file://')}/tokenizer.json").encode_batch
        seconds = _seconds(lambda: encode(self._turns, add_special_tokens=False))
        return seconds * self._times

    def pack(self, url: str, manifest: dict[str, Any]) -> float:
        """Reading the tokens from Parquet and writing them to it."""
        path = f"{url.removeprefix('file://')}/{manifest['shards']['train'][0]['file']}"
        shard = pq.read_table(path)
        seconds = _seconds(lambda: pq.read_table(path, columns=["tokens", "trained"]))
        seconds += _seconds(lambda: _write_parquet(shard))
        share = pc.sum(pc.list_value_length(shard["tokens"])).as_py() / manifest["packing"]["tokens"]
        return seconds / share


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _write_parquet(table: pa.Table) -> None:
    pq.write_table(table, pa.BufferOutputStream(), compression="zstd")
