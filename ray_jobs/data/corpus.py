"""The first half of preparation: raw files to deduplicated, tokenised conversations. Done once per content.

    corpus-<hash>/keys/part-<file>.parquet            one line per raw row or thread; there once it is read
    corpus-<hash>/conversations/part-<file>.parquet   row, thread, roles, contents
    corpus-<hash>/signatures/part-<file>.parquet      their MinHash signatures
    corpus-<hash>/duplicates.parquet                  one line per dropped duplicate, with the twin that was kept
    corpus-<hash>/tokenised/part-<file>.parquet       the kept ones: tokens, trained, borders of turns
    corpus-<hash>/lengths/part-<file>.parquet         one line per tokenised conversation; there once it is tokenised
    corpus-<hash>/deduplicated.parquet                what is dropped, by place; there once that is known
    corpus-<hash>/tokenizer/                          Hugging Face tokenizer with chat template
    corpus-<hash>/index.parquet                       one line per tokenised conversation
    corpus-<hash>/rejected/part-<file>.parquet        what is no conversation: where, reason, excerpt
    corpus-<hash>/contaminated/part-<file>.parquet    rows that overlap with a benchmark: where, which, the words shared
    corpus-<hash>/lineage.json                        what all of it follows from (`ray_jobs.data.lineage`)
    corpus-<hash>/manifest.json                       written last: it makes the directory whole

The hash is of what the files hold, not of where they lie: moved or copied data is not prepared again. A directory
without a manifest is gone on with, file by file (`ray_jobs.data.resumable`); two jobs at once may do so, for each file
appears by one rename and both would write the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from fsspec.core import url_to_fs

from ray_jobs.data.benchmarks import FIELD as BENCHMARKS_FIELD
from ray_jobs.data.benchmarks import benchmark_texts, find_benchmark_files
from ray_jobs.data.corpus_builder import INDEX_FILE, CorpusBuilder, ProgressCallback
from ray_jobs.data.decontaminate import NgramIndex
from ray_jobs.data.identity_files import identity_file
from ray_jobs.data.lineage import directory_digests, identity, write_lineage
from ray_jobs.data.parquet_files import read_parquet
from ray_jobs.data.tasks import TOKENIZER
from ray_jobs.data.tokenizer_files import tokenizer_identity
from ray_jobs.run_directory import write_file
from service.errors import ConflictError
from service.rows.sources import SourceFile, digest, find_files
from service.spec.data import DecontaminateSpec
from service.spec.identity import IdentitySourceSpec
from service.spec.job import JobSpec

FORMAT_VERSION = 10
"""Raised when this code would make other data of the same sources."""
MANIFEST_FILE = "manifest.json"
_OF_SOURCE = {"name", "category", "form", "replace", "system_prompt", "max_rows", "duplicates"}
"""What of a source decides the corpus; the rest leads to its files, or matters to the mixture alone."""


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
        return read_parquet(f"{self.url}/{INDEX_FILE}")


def prepare_corpus(spec: JobSpec, prepared_url: str, progress: ProgressCallback) -> Corpus:
    """Read, normalise, decontaminate, deduplicate and tokenise; or find that it was done before.

    Args:
        spec: the job's; what matters to the corpus decides its hash.
        prepared_url: parent of the corpus directory.
        progress: told how far it is.

    Raises:
        EndpointError: an endpoint that is to paraphrase does not answer.
        SourceNotFoundError: a source, a benchmark or the tokenizer is not there.
        InvalidSpecError: a file's format is unknown, its filesystem needs a package that is missing, or the tokenizer
            lacks a token of the chat template or cannot render it as the data is.
        BadRowError: a row is no conversation and the spec says `fail`, or a benchmark's row has no text.
        EmptyDataError: nothing is left.
        ConflictError: a source, a benchmark or the tokenizer changed meanwhile.
    """
    written = {
        index: identity_file(source, index, prepared_url, lambda done, total: progress("identity", done, total, "rows"))
        for index, source in enumerate(spec.data.sources)
        if isinstance(source, IdentitySourceSpec)
    }
    files, benchmark_files = find_files(spec.data, written), find_benchmark_files(spec.data.decontaminate)
    digests = _digests(files + benchmark_files, "hash sources", progress)
    decided_by = _decided_by(spec, files, benchmark_files, digests)
    url = f"{prepared_url}/corpus-{identity(decided_by)}"
    if (manifest := read_manifest(url)) is not None:
        return Corpus(url, manifest, reused=True)
    split = len(files)
    ngrams = _ngram_index(spec.data.decontaminate, benchmark_files)
    again = _digests(benchmark_files, "hash benchmarks again", progress)
    _require_same(benchmark_files, digests[split:], again, BENCHMARKS_FIELD)
    builder = CorpusBuilder(
        spec,
        files=list(zip(files, digests[:split], strict=True)),
        benchmarks=ngrams,
        tokenizer=decided_by["tokenizer"],
        url=url,
        progress=progress,
    )
    manifest = {"hash": identity(decided_by), **builder.build()}
    write_lineage(url, decided_by, tokenizer=directory_digests(f"{url}/{TOKENIZER}"))
    write_manifest(url, manifest)
    return Corpus(url, manifest, reused=False)


def _ngram_index(spec: DecontaminateSpec | None, files: list[SourceFile]) -> NgramIndex | None:
    """What the read tasks look for; it holds a few bytes a word of the benchmarks, whose text passes through here."""
    return None if spec is None else NgramIndex(benchmark_texts(spec, files), spec.ngram_words)


def read_manifest(url: str) -> dict[str, Any] | None:
    """A prepared directory's manifest; None when the directory is not there or not whole."""
    filesystem, path = url_to_fs(f"{url}/{MANIFEST_FILE}")
    if not filesystem.exists(path):
        return None
    manifest: dict[str, Any] = json.loads(filesystem.cat_file(path))
    return manifest


def write_manifest(url: str, manifest: dict[str, Any]) -> None:
    """Declare a prepared directory whole."""
    write_file(f"{url}/{MANIFEST_FILE}", json.dumps(manifest, indent=2, allow_nan=False).encode())


def _decided_by(
    spec: JobSpec, files: list[SourceFile], benchmark_files: list[SourceFile], digests: list[str]
) -> dict[str, Any]:
    """All that decides the corpus: contents, forms, what is removed, tokenizer, and this code's version."""
    data, split = spec.data, len(files)
    return {
        "version": FORMAT_VERSION,
        "files": _contents(files, digests[:split]),
        "sources": [source.model_dump(include=_OF_SOURCE) for source in data.sources],
        "on_bad_row": data.on_bad_row,
        "decontaminate": None if data.decontaminate is None else data.decontaminate.ngram_words,
        "benchmark_files": _contents(benchmark_files, digests[split:]),
        "benchmarks": [
            b.model_dump(include=_OF_SOURCE) for b in (data.decontaminate.against if data.decontaminate else ())
        ],
        "dedup": data.dedup.model_dump() if data.dedup else None,
        "tokenizer": tokenizer_identity(spec.model),
    }


def _contents(files: list[SourceFile], digests: list[str]) -> list[list[Any]]:
    return [[file.source, file.format, file.header, content] for file, content in zip(files, digests, strict=True)]


def _require_same(files: list[SourceFile], before: list[str], after: list[str], field: str) -> None:
    for file, old, new in zip(files, before, after, strict=True):
        if old != new:
            raise ConflictError(f"{file.url} changed while it was read: start again", f"{field}.{file.source}.uri")


@ray.remote  # type: ignore[untyped-decorator]
def _digest_task(url: str) -> str:
    return digest(url)


def _digests(files: list[SourceFile], task: str, progress: ProgressCallback) -> list[str]:
    pending = [_digest_task.remote(file.url) for file in files]
    digests: list[str] = []
    for result in pending:
        digests.append(ray.get(result))
        progress(task, len(digests), len(files), "files")
    return digests
