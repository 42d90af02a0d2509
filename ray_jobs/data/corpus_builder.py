"""Building a corpus: Ray Data tasks handle text, the driver what links their results.

Text is handled in `ray_jobs.data.tasks`; the driver holds ids and hashes, and of text only what it shows
and, a row group at a time, what it trains a tokenizer on. Results come back in any order and are sorted by file and
row, so nothing depends on scheduling.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from ray_jobs.data.accounting import Ledger, RowCounts
from ray_jobs.data.decontaminate import NgramIndex
from ray_jobs.data.dedup import Duplicates
from ray_jobs.data.duplicates import RECEIPT_FILE, DuplicateSearch, Rows
from ray_jobs.data.mixture import within_cap
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_row_groups
from ray_jobs.data.removed_rows import CONTAMINATED, REJECTED, first_lines, reasons_of_rejected, rows_of_benchmarks
from ray_jobs.data.resumable import (
    SHA256,
    is_tokenizer_whole,
    keep_duplicates,
    keep_tokenizer,
    missing_lines,
    read_duplicates,
    resume_file,
)
from ray_jobs.data.tasks import (
    CONVERSATIONS,
    FILTERED,
    INDEX_SCHEMA,
    KEY_SCHEMA,
    TOKENIZER,
    conversation_text,
    read_conversations,
    read_file,
    tokenise_file,
)
from ray_jobs.data.tokenizer_files import make_tokenizer, tokenizer_identity
from service.errors import BadRowError, ConflictError, EmptyDataError
from service.rows.sources import SourceFile
from service.spec.data import DedupSpec
from service.spec.job import JobSpec
from service.spec.source import SourceSpec

INDEX_FILE = "index.parquet"
DEDUPLICATED_FILE = "deduplicated.parquet"
FILE_NAMES = b"file_names"
"""Key in the index's metadata: names of the files, without their folders, as JSON."""
_MAX_DUPLICATES_SHOWN = 5
_MAX_CHARS_SHOWN = 160

ProgressCallback = Callable[[str, int, int | None, str], None]
"""Called with task, done, total (None: unknown) and unit."""


class _FileTask(NamedTuple):
    """A task that Ray Data runs on each file."""

    name: str
    function: Callable[..., Any]
    schema: pa.Schema
    lines: str


_READ = _FileTask("read and sign", read_file, KEY_SCHEMA, "keys")
_TOKENISE = _FileTask("tokenise", tokenise_file, INDEX_SCHEMA, "lengths")
"""The last names the directory where the task's lines are kept."""


def _file_numbers(keys: pa.Table) -> list[int]:
    """Files that the keys are of, in order."""
    return list(dict.fromkeys(keys["file"].to_pylist()))


class CorpusBuilder:
    """Builds one corpus directory, from whatever an earlier run has left there.

    Args:
        spec: the job's.
        files: of the sources, with their hashes.
        benchmarks: what must not be trained on, if anything.
        tokenizer: what `tokenizer_identity` gave when the directory was named.
        url: of the directory.
        progress: told how far it is.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        files: Sequence[tuple[SourceFile, str]],
        benchmarks: NgramIndex | None,
        tokenizer: dict[str, Any],
        url: str,
        progress: ProgressCallback,
    ) -> None:
        self._spec, self._benchmarks, self._url, self._progress = spec, benchmarks, url, progress
        self._tokenizer = tokenizer
        self._files, self._digests = [file for file, _ in files], [digest for _, digest in files]
        self._ledger = Ledger([source.name for source in spec.data.sources])
        self._counts: dict[str, RowCounts] = {}
        self._rejected: list[dict[str, Any]] = []
        self._rejected_reasons: list[dict[str, Any]] = []
        self._told: dict[str, Any] = {"dedup": None, "dedup_examples": []}

    def build(self) -> dict[str, Any]:
        """Do all stages; returns the manifest without its hash."""
        lines = self._read()
        keys = self._cap(lines.filter(pc.is_valid(lines["position"])))
        kept = self._deduplicate(keys)
        self._make_tokenizer(keys, kept)
        self._tokenise(keys, kept)
        return {
            "sources": self._describe_sources(),
            "accounting": self._ledger.stages,
            "rejected_rows": self._rejected,
            "rejected_reasons": self._rejected_reasons,
            "rejected_rows_url": f"{self._url}/{REJECTED}",
            "decontamination": self._decontamination(lines.filter(pc.equal(lines["gone"], CONTAMINATED))),
            **self._told,
        }

    def _read(self) -> pa.Table:
        """Keys of all rows, by file, row and thread; those of what is gone have no position."""
        items = [
            {"file": index, **asdict(file), SHA256: digest}
            for index, (file, digest) in enumerate(zip(self._files, self._digests, strict=True))
        ]
        table = self._run(
            _READ,
            items,
            None,
            data=self._spec.data,
            benchmarks=self._benchmarks,
            corpus_url=self._url,
        )
        for number in missing_lines(f"{self._url}/{_READ.lines}", len(items)):
            file = self._files[number]
            raise ConflictError(f"{file.url} changed while it was read: start again", f"data.sources.{file.source}.uri")
        table = table.sort_by([("file", "ascending"), ("row", "ascending"), ("thread", "ascending")])
        bad, filtered, contaminated = (
            table.filter(pc.equal(table["gone"], reason)) for reason in (REJECTED, FILTERED, CONTAMINATED)
        )
        self._rejected = first_lines(f"{self._url}/{REJECTED}", _file_numbers(bad))
        if self._rejected and self._spec.data.on_bad_row == "fail":
            raise self._bad_rows(self._rejected, len(bad))
        self._rejected_reasons = reasons_of_rejected(f"{self._url}/{REJECTED}", _file_numbers(bad))
        self._enter(
            "read",
            self._rows(table.filter(pc.equal(table["thread"], 1))),
            self._rows(table.filter(pc.is_valid(table["position"]))),
            made=self._rows(table.filter(pc.greater(table["thread"], 1))),
            rows_rejected=self._rows(bad),
            rows_filtered=self._rows(filtered),
            rows_contaminated=self._rows(contaminated),
        )
        return table

    def _enter(
        self, stage: str, rows_in: RowCounts, on: RowCounts, made: RowCounts | None = None, **gone: RowCounts
    ) -> None:
        self._ledger.stage(stage, rows_in, on, made, **gone)
        before = {name: rows for name, rows in self._counts.items() if name != "rows_kept"}
        first = {"rows_read": rows_in, "further_threads": made or Counter()}
        self._counts = first | before | gone | {"rows_kept": on}

    def _decontamination(self, contaminated: pa.Table) -> dict[str, Any] | None:
        spec, index = self._spec.data.decontaminate, self._benchmarks
        if spec is None or index is None:
            return None
        url, files = f"{self._url}/{CONTAMINATED}", _file_numbers(contaminated)
        rows = rows_of_benchmarks(url, files)
        return {
            "ngram_words": spec.ngram_words,
            "ngrams": index.num_ngrams,
            "short_texts": index.num_short_texts,
            "benchmarks": [{"name": benchmark.name, "rows": rows[benchmark.name]} for benchmark in spec.against],
            "rows": first_lines(url, files),
            "rows_url": url,
        }

    def _cap(self, keys: pa.Table) -> pa.Table:
        """Keys of what the sources' `max_rows` let in."""
        if not len(keys):
            raise EmptyDataError("no source holds a conversation", "data.sources")
        sources = self._sources_of(keys)
        hashes = np.array(keys["content_hash"].to_pylist(), dtype=object)
        taken = np.ones(len(keys), dtype=bool)
        for number, source in enumerate(self._spec.data.sources):
            if isinstance(source, SourceSpec) and source.max_rows is not None:
                members = np.flatnonzero(sources == number)
                taken[members] = within_cap(hashes[members].tolist(), source.max_rows)
        capped = keys.filter(pa.array(taken))
        self._enter("cap", self._rows(keys), self._rows(capped), rows_over_cap=Counter(sources[~taken].tolist()))
        return capped

    def _sources_of(self, keys: pa.Table) -> np.ndarray:
        source_of_file = np.array([file.source for file in self._files])
        sources: np.ndarray = source_of_file[keys["file"].to_numpy()]
        return sources

    def _bad_rows(self, rejected: list[dict[str, Any]], num_rejected: int) -> BadRowError:
        first = rejected[0]
        index = [source.name for source in self._spec.data.sources].index(first["source"])
        more = f" (and {num_rejected - 1} more)" if num_rejected > 1 else ""
        return BadRowError(
            f"{first['file']} row {first['row']}: {first['reason']}{more}; mend it, or set data.on_bad_row to skip",
            f"data.sources.{index}.uri",
        )

    def _run(self, task: _FileTask, items: list[dict[str, Any]], total: int | None, **kwargs: Any) -> pa.Table:
        """Run a task over files, one file a task, and gather its tables."""
        # its share for other operators, of which there are none, would leave one of two cores idle
        ray.data.DataContext.get_current().op_resource_reservation_enabled = False
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        kwargs |= {"function": task.function, "schema": task.schema, "lines_url": f"{self._url}/{task.lines}"}
        results = dataset.map_batches(resume_file, batch_size=1, batch_format="pyarrow", fn_kwargs=kwargs)
        blocks: list[pa.Table] = []
        done = 0
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            blocks.append(block.cast(task.schema))
            done += block.num_rows
            self._progress(task.name, done, total, "rows")
        return pa.concat_tables(blocks) if blocks else task.schema.empty_table()

    def _deduplicate(self, keys: pa.Table) -> np.ndarray:
        """Which keys are no duplicates, bool [N]."""
        sources, kept = self._sources_of(keys), np.ones(len(keys), dtype=bool)
        exact, near = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if self._spec.data.dedup is not None:
            self._progress("deduplicate", 0, len(keys), "conversations")
            duplicates, self._told = self._find_duplicates(self._spec.data.dedup, keys, sources)
            self._progress("deduplicate", len(keys), len(keys), "conversations")
            kept[duplicates.dropped_D] = False
            exact = sources[duplicates.dropped_D[duplicates.is_exact_D]]
            near = sources[duplicates.dropped_D[~duplicates.is_exact_D]]
        self._enter(
            "deduplicate",
            self._rows(keys),
            Counter(sources[kept].tolist()),
            exact_duplicates=Counter(exact.tolist()),
            near_duplicates=Counter(near.tolist()),
        )
        return kept

    def _find_duplicates(
        self, dedup: DedupSpec, keys: pa.Table, sources: np.ndarray
    ) -> tuple[Duplicates, dict[str, Any]]:
        """The duplicates, and what the manifest tells of them."""
        kept_url = f"{self._url}/{DEDUPLICATED_FILE}"
        if (found := read_duplicates(kept_url)) is None:
            is_spared = np.array([source.duplicates == "exact" for source in self._spec.data.sources])
            search = DuplicateSearch(dedup, Rows.of(keys, sources, is_spared[sources]), self._url)
            duplicates = search.run()
            names = [source.name for source in self._spec.data.sources]
            search.write_receipt(duplicates, names, self._file_names)
            described = search.describe(duplicates, names)
            del described["receipt_url"]  # where a corpus lies is not part of it
            found = duplicates, {"dedup": described, "dedup_examples": self._show(keys, duplicates)}
            keep_duplicates(kept_url, *found)
        duplicates, told = found
        return duplicates, {**told, "dedup": {**told["dedup"], "receipt_url": f"{self._url}/{RECEIPT_FILE}"}}

    def _make_tokenizer(self, keys: pa.Table, kept: np.ndarray) -> None:
        self._progress("tokenizer", 0, 1, "tokenizers")
        url = f"{self._url}/{TOKENIZER}"
        if not is_tokenizer_whole(url):
            texts = (text for _, text in self._read_texts(keys, np.flatnonzero(kept).tolist()))
            make_tokenizer(self._spec.model, texts, url)
            if tokenizer_identity(self._spec.model) != self._tokenizer:
                raise ConflictError("the tokenizer changed while it was read: start again", "model.tokenizer")
            keep_tokenizer(url)
        self._progress("tokenizer", 1, 1, "tokenizers")

    def _tokenise(self, keys: pa.Table, kept: np.ndarray) -> None:
        kept_keys = keys.filter(pa.array(kept))
        items = []
        for index, file in enumerate(self._files):
            mine = kept_keys.filter(pc.equal(kept_keys["file"], index))
            if mine.num_rows:
                item = {"file": index, "source": file.source, "kept": mine["position"].to_pylist()}
                hashes = {f"{name}es": mine[name].to_pylist() for name in ("content_hash", "group_hash")}
                items.append(item | hashes)
        index = self._run(
            _TOKENISE,
            items,
            len(kept_keys),
            data=self._spec.data,
            corpus_url=self._url,
        )
        index = index.sort_by([("file", "ascending"), ("position", "ascending")])
        self._enter("tokenise", self._rows(kept_keys), Counter(index["source"].to_pylist()))
        index = index.replace_schema_metadata({FILE_NAMES: json.dumps(self._file_names)})
        with parquet_writer(f"{self._url}/{INDEX_FILE}", index.schema) as writer:
            writer.write_table(index)

    @property
    def _file_names(self) -> list[str]:
        """Without folders: where the data lies is not part of a corpus."""
        return [file.url.rpartition("/")[2] for file in self._files]

    def _rows(self, keys: pa.Table) -> RowCounts:
        return Counter(self._sources_of(keys).tolist())

    def _describe_sources(self) -> list[dict[str, Any]]:
        return [
            {
                "name": source.name,
                "category": source.category,
                "files": sum(file.source == number for file in self._files),
                **{name: rows[number] for name, rows in self._counts.items()},
            }
            for number, source in enumerate(self._spec.data.sources)
        ]

    def _show(self, keys: pa.Table, duplicates: Duplicates) -> list[dict[str, Any]]:
        """A few duplicates for the reader's eye, near ones first: they are the ones to doubt."""
        picked = np.argsort(duplicates.is_exact_D, kind="stable")[:_MAX_DUPLICATES_SHOWN]
        dropped, kept = duplicates.dropped_D[picked].tolist(), duplicates.kept_D[picked].tolist()
        texts = self._texts(keys, sorted({*dropped, *kept}))
        return [
            {
                "kind": "exact" if duplicates.is_exact_D[line] else "near",
                "similarity": float(duplicates.similarity_D[line]),
                "dropped": texts[one][:_MAX_CHARS_SHOWN],
                "kept": texts[other][:_MAX_CHARS_SHOWN],
            }
            for line, one, other in zip(picked.tolist(), dropped, kept, strict=True)
        ]

    def _texts(self, keys: pa.Table, indices: Sequence[int]) -> dict[int, str]:
        return dict(self._read_texts(keys, indices))

    def _read_texts(self, keys: pa.Table, indices: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Some conversations' index and text, in order of a sorted index: one row group at a time is in memory."""
        chosen = keys.select(["file", "position"]).take(pa.array(indices, pa.int64()))
        files, positions = chosen["file"].to_numpy(), chosen["position"].to_numpy()
        for file in np.unique(files).tolist():
            mine, first = np.flatnonzero(files == file), 0
            for group in read_row_groups(part_url(f"{self._url}/{CONVERSATIONS}", file), ["roles", "contents"]):
                here = mine[slice(*np.searchsorted(positions[mine], [first, first + group.num_rows]))]
                conversations = read_conversations(group.take(positions[here] - first))
                yield from zip((indices[line] for line in here), map(conversation_text, conversations), strict=True)
                first += group.num_rows
