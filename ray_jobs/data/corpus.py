"""The first half of preparation: raw files to deduplicated, tokenised conversations. Done once per content.

Text is handled in Ray Data tasks (`ray_jobs.data.tasks`); the driver holds ids, hashes and band keys, and the text of
duplicate candidates only.

    corpus-<hash>/conversations/part-<file>.parquet   row, roles, contents
    corpus-<hash>/tokenised/part-<file>.parquet       the kept ones: tokens, trained
    corpus-<hash>/tokenizer/                          Hugging Face tokenizer with chat template
    corpus-<hash>/index.parquet                       one line per tokenised conversation
    corpus-<hash>/rejected-rows.jsonl                 source, file, row, reason
    corpus-<hash>/manifest.json                       written last: it makes the directory whole
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from fsspec.core import url_to_fs

from ray_jobs.data.dedup import Duplicate, find_duplicates
from ray_jobs.data.minhash import jaccard, shingles
from ray_jobs.data.sources import SourceFile, digest, find_files
from ray_jobs.data.tasks import (
    INDEX_SCHEMA,
    KEY_SCHEMA,
    conversation_text,
    part_path,
    read_conversations,
    read_file,
    tokenise_file,
)
from ray_jobs.data.tokenise import train_bpe
from ray_jobs.run_directory import local_directory, write_file
from service.errors import BadRowError, EmptyDataError, SourceNotFoundError
from service.spec.job import JobSpec
from service.spec.model import CheckpointBase, PretrainedTokenizer, TrainedTokenizer

FORMAT_VERSION = 1
"""Raised when this code would make other data of the same sources."""
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.parquet"
REJECTED_FILE = "rejected-rows.jsonl"
_MAX_REJECTED_SHOWN = 20
_MAX_DUPLICATES_SHOWN = 5
_MAX_CHARS_SHOWN = 160

ProgressCallback = Callable[[str, int, int | None, str], None]
"""Called with task, done, total (None: unknown) and unit."""


@dataclass(frozen=True)
class Corpus:
    """Tokenised conversations on disk.

    Attributes:
        url: their directory.
        manifest: counts per source, and duplicates.
        reused: whether an earlier run had already made it.
    """

    url: str
    manifest: dict[str, Any]
    reused: bool

    def read_index(self) -> pa.Table:
        """One line per conversation, in order of source, file and row."""
        filesystem, path = url_to_fs(f"{self.url}/{INDEX_FILE}")
        with filesystem.open(path, "rb") as stream:
            return pq.read_table(stream)


def prepare_corpus(spec: JobSpec, prepared_url: str, progress: ProgressCallback) -> Corpus:
    """Read, normalise, deduplicate and tokenise; or find that it was done before.

    Args:
        spec: the job's; what matters to the corpus decides its hash.
        prepared_url: parent of the corpus directory.
        progress: told how far it is.

    Raises:
        SourceNotFoundError: a source or the tokenizer is not there.
        BadRowError: a row is no conversation and the spec says `fail`.
        EmptyDataError: nothing is left.
    """
    files = find_files(spec.data)
    identity = _identity(spec, files, _digests(files, progress))
    url = f"{prepared_url}/corpus-{identity}"
    if (manifest := read_manifest(url)) is not None:
        return Corpus(url, manifest, reused=True)
    remove_directory(url)
    manifest = {"hash": identity, **_CorpusBuilder(spec, files, url, progress).build()}
    write_file(f"{url}/{MANIFEST_FILE}", json.dumps(manifest, indent=2).encode())
    return Corpus(url, manifest, reused=False)


def read_manifest(url: str) -> dict[str, Any] | None:
    """A prepared directory's manifest; None when the directory is not there or not whole."""
    filesystem, path = url_to_fs(f"{url}/{MANIFEST_FILE}")
    if not filesystem.exists(path):
        return None
    manifest: dict[str, Any] = json.loads(filesystem.cat_file(path))
    return manifest


def remove_directory(url: str) -> None:
    """Remove what an interrupted run left."""
    filesystem, path = url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def _identity(spec: JobSpec, files: list[SourceFile], digests: list[str]) -> str:
    """Hash of all that decides the corpus: contents, forms, deduplication, tokenizer, and this code's version."""
    document = {
        "version": FORMAT_VERSION,
        "files": [[file.source, file.format, content] for file, content in zip(files, digests, strict=True)],
        "sources": [source.model_dump(include={"name", "category", "form"}) for source in spec.data.sources],
        "on_bad_row": spec.data.on_bad_row,
        "dedup": spec.data.dedup.model_dump() if spec.data.dedup else None,
        "tokenizer": _tokenizer_identity(spec),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _given_tokenizer(spec: JobSpec) -> str | None:
    """Directory of the tokenizer that the spec names; None when one is to be trained."""
    if isinstance(spec.model.tokenizer, PretrainedTokenizer):
        return spec.model.tokenizer.path
    return spec.model.base.path if isinstance(spec.model.base, CheckpointBase) else None


def _tokenizer_identity(spec: JobSpec) -> dict[str, Any]:
    if isinstance(spec.model.tokenizer, TrainedTokenizer):
        return spec.model.tokenizer.model_dump()
    url = f"{_given_tokenizer(spec)}/tokenizer.json"
    filesystem, path = url_to_fs(url)
    if not filesystem.exists(path):
        raise SourceNotFoundError(f"no such file: {url}", "model.tokenizer" if spec.model.tokenizer else "model.base")
    return {"kind": "pretrained", "sha256": digest(url)}


@ray.remote  # type: ignore[untyped-decorator]
def _digest_task(url: str) -> str:
    return digest(url)


def _digests(files: list[SourceFile], progress: ProgressCallback) -> list[str]:
    pending = [_digest_task.remote(file.url) for file in files]
    digests: list[str] = []
    for result in pending:
        digests.append(ray.get(result))
        progress("hash sources", len(digests), len(files), "files")
    return digests


class _FileTask(NamedTuple):
    """A task that Ray Data runs on each file."""

    name: str
    function: Callable[..., Any]
    schema: pa.Schema


_READ = _FileTask("read and sign", read_file, KEY_SCHEMA)
_TOKENISE = _FileTask("tokenise", tokenise_file, INDEX_SCHEMA)


class _CorpusBuilder:
    """Builds one corpus directory."""

    def __init__(self, spec: JobSpec, files: list[SourceFile], url: str, progress: ProgressCallback) -> None:
        self._spec, self._files, self._url, self._progress = spec, files, url, progress
        self._conversations_url = f"{url}/conversations"

    def build(self) -> dict[str, Any]:
        """Do all stages; returns the manifest without its hash."""
        keys, rejected = self._read()
        duplicates = self._find_duplicates(keys)
        kept = np.ones(len(keys), dtype=bool)
        kept[[duplicate.dropped for duplicate in duplicates]] = False
        self._make_tokenizer(keys, kept)
        self._tokenise(keys, kept)
        return {
            "sources": self._count(keys, rejected, duplicates),
            "rejected_rows": rejected[:_MAX_REJECTED_SHOWN],
            "rejected_rows_file": f"{self._url}/{REJECTED_FILE}",
            "duplicates": self._show(keys, duplicates[:_MAX_DUPLICATES_SHOWN]),
        }

    def _read(self) -> tuple[pa.Table, list[dict[str, Any]]]:
        items = [{"file": index, **asdict(file)} for index, file in enumerate(self._files)]
        table = self._run(_READ, items, None, data=self._spec.data, directory_url=self._conversations_url)
        table = table.sort_by([("file", "ascending"), ("row", "ascending")])
        is_good = pc.is_null(table["reason"])
        rejected = [self._locate(line) for line in table.filter(pc.invert(is_good)).to_pylist()]
        write_file(f"{self._url}/{REJECTED_FILE}", b"".join(json.dumps(row).encode() + b"\n" for row in rejected))
        if rejected and self._spec.data.on_bad_row == "fail":
            raise self._bad_rows(rejected)
        keys = table.filter(is_good)
        if not len(keys):
            raise EmptyDataError("no source holds a conversation", "data.sources")
        return keys, rejected

    def _locate(self, line: dict[str, Any]) -> dict[str, Any]:
        file = self._files[line["file"]]
        source = self._spec.data.sources[file.source].name
        return {"source": source, "file": file.url, "row": line["row"], "reason": line["reason"]}

    def _bad_rows(self, rejected: list[dict[str, Any]]) -> BadRowError:
        first = rejected[0]
        index = [source.name for source in self._spec.data.sources].index(first["source"])
        more = f" (and {len(rejected) - 1} more)" if len(rejected) > 1 else ""
        return BadRowError(
            f"{first['file']} row {first['row']}: {first['reason']}{more}; mend it, or set data.on_bad_row to skip",
            f"data.sources.{index}.uri",
        )

    def _run(self, task: _FileTask, items: list[dict[str, Any]], total: int | None, **kwargs: Any) -> pa.Table:
        """Run a task over files, one file a task, and gather its tables."""
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        results = dataset.map_batches(task.function, batch_size=1, batch_format="pyarrow", fn_kwargs=kwargs)
        blocks: list[pa.Table] = []
        done = 0
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            blocks.append(block.cast(task.schema))
            done += block.num_rows
            self._progress(task.name, done, total, "rows")
        return pa.concat_tables(blocks) if blocks else task.schema.empty_table()

    def _find_duplicates(self, keys: pa.Table) -> list[Duplicate]:
        dedup = self._spec.data.dedup
        if dedup is None:
            return []
        texts = _Texts(self._conversations_url, keys)

        @cache
        def shingles_of(index: int) -> set[str]:
            return shingles(texts[index], dedup.shingle_words)

        self._progress("deduplicate", 0, len(keys), "conversations")
        duplicates = find_duplicates(
            keys["content_hash"].to_pylist(),
            np.stack([np.frombuffer(row, dtype=np.uint64) for row in keys["band_keys"].to_pylist()]),
            keys["completion_chars"].to_pylist(),
            lambda first, second: jaccard(shingles_of(first), shingles_of(second)),
            dedup.threshold,
        )
        self._progress("deduplicate", len(keys), len(keys), "conversations")
        return duplicates

    def _make_tokenizer(self, keys: pa.Table, kept: np.ndarray) -> None:
        self._progress("tokenizer", 0, 1, "tokenizers")
        filesystem, target = url_to_fs(f"{self._url}/tokenizer")
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / "tokenizer"
            if isinstance(self._spec.model.tokenizer, TrainedTokenizer):
                texts = _Texts(self._conversations_url, keys)
                kept_texts = (texts[index] for index in np.flatnonzero(kept).tolist())
                train_bpe(kept_texts, self._spec.model.tokenizer.vocab_size, directory)
            else:
                with local_directory(_given_tokenizer(self._spec) or "") as given:
                    directory.mkdir()
                    for path in given.glob("*token*"):
                        shutil.copy(path, directory)
            filesystem.put(f"{directory}/", f"{target}/", recursive=True)
        self._progress("tokenizer", 1, 1, "tokenizers")

    def _tokenise(self, keys: pa.Table, kept: np.ndarray) -> None:
        kept_keys = keys.filter(pa.array(kept))
        items = []
        for index, file in enumerate(self._files):
            mine = kept_keys.filter(pc.equal(kept_keys["file"], index))
            if mine.num_rows:
                item = {"file": index, "source": file.source, "kept": mine["position"].to_pylist()}
                items.append(item | {"content_hashes": mine["content_hash"].to_pylist()})
        index = self._run(
            _TOKENISE,
            items,
            len(kept_keys),
            conversations_url=self._conversations_url,
            tokenised_url=f"{self._url}/tokenised",
            tokenizer_url=f"{self._url}/tokenizer",
        )
        if len(index) != len(kept_keys):
            raise AssertionError(f"{len(kept_keys)} conversations went into tokenising, {len(index)} came out")
        sink = io.BytesIO()
        pq.write_table(index.sort_by([("file", "ascending"), ("position", "ascending")]), sink)
        write_file(f"{self._url}/{INDEX_FILE}", sink.getvalue())

    def _count(
        self, keys: pa.Table, rejected: list[dict[str, Any]], duplicates: list[Duplicate]
    ) -> list[dict[str, Any]]:
        source_of_file = [file.source for file in self._files]
        source_of_key = [source_of_file[file] for file in keys["file"].to_pylist()]
        read = Counter(source_of_key)
        bad = Counter(row["source"] for row in rejected)
        dropped = Counter((source_of_key[duplicate.dropped], duplicate.kind) for duplicate in duplicates)
        return [
            {
                "name": source.name,
                "category": source.category,
                "files": source_of_file.count(index),
                "rows_read": read[index] + bad[source.name],
                "rows_rejected": bad[source.name],
                "exact_duplicates": dropped[index, "exact"],
                "near_duplicates": dropped[index, "near"],
                "rows_kept": read[index] - dropped[index, "exact"] - dropped[index, "near"],
            }
            for index, source in enumerate(self._spec.data.sources)
        ]

    def _show(self, keys: pa.Table, duplicates: list[Duplicate]) -> list[dict[str, Any]]:
        texts = _Texts(self._conversations_url, keys)
        return [
            {
                "kind": duplicate.kind,
                "dropped": texts[duplicate.dropped][:_MAX_CHARS_SHOWN],
                "kept": texts[duplicate.kept][:_MAX_CHARS_SHOWN],
            }
            for duplicate in duplicates
        ]


class _Texts:
    """Text of conversations by index, read part by part when first asked for."""

    def __init__(self, conversations_url: str, keys: pa.Table) -> None:
        self._url = conversations_url
        self._files: list[int] = keys["file"].to_pylist()
        self._positions: list[int] = keys["position"].to_pylist()
        self._parts: dict[int, pa.Table] = {}

    def __getitem__(self, index: int) -> str:
        file = self._files[index]
        if file not in self._parts:
            filesystem, path = url_to_fs(part_path(self._url, file))
            with filesystem.open(path, "rb") as stream:
                self._parts[file] = pq.read_table(stream, columns=["roles", "contents"])
        [conversation] = read_conversations(self._parts[file].slice(self._positions[index], 1))
        return conversation_text(conversation)
