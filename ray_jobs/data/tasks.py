"""The tasks that Ray Data runs on text: one file in, one Parquet part out, and only fixed-size keys back to the driver.

A part is named by its file's number, so a task that runs twice writes the same part again (`parquet_files`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.data.accounting import Counted
from ray_jobs.data.decontaminate import NgramIndex, Overlap
from ray_jobs.data.minhash import band_keys
from ray_jobs.data.parquet_files import (
    Lines,
    optional_parquet_writer,
    parquet_writer,
    part_url,
    read_lines,
    read_parquet,
)
from ray_jobs.data.removed_rows import (
    CONTAMINATED,
    CONTAMINATED_SCHEMA,
    REJECTED,
    REJECTED_SCHEMA,
    contaminated_table,
    rejected_table,
)
from ray_jobs.data.tokenise import ChatTokenizer, TokenisedConversation
from ray_jobs.run_directory import local_directory
from service.rows.formats import Conversation, RowReader, Turn
from service.rows.normalise import Row, batches, normalised, with_system_prompt
from service.rows.raw_rows import read_rows
from service.rows.sources import SourceFile
from service.spec.data import DataSpec, DedupSpec
from service.spec.source import SourceSpec

CONVERSATIONS, SIGNATURES, TOKENISED, TOKENIZER = "conversations", "signatures", "tokenised", "tokenizer"
"""Directories of a corpus, beside those of `removed_rows`."""
FILTERED = "filtered"
"""Why a row is gone, beside the names of those directories."""
_BATCH = 512
"""Conversations handled at once: bounds a task's memory."""

CONVERSATION_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("thread", pa.int32()),
        ("roles", pa.list_(pa.string())),
        ("contents", pa.list_(pa.string())),
    ]
)
SIGNATURE_SCHEMA = pa.schema([("minima", pa.binary())])
TURN_COLUMNS = ("turn_ends", "turn_roles", "turn_answers")
"""The fields of `cutting.TurnBorders`."""
TOKENISED_SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),
        *((name, pa.list_(pa.int32())) for name in TURN_COLUMNS),
    ]
)
KEY_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("row", pa.int64()),
        ("thread", pa.int32()),
        ("position", pa.int64()),
        ("gone", pa.string()),
        ("content_hash", pa.binary()),
        ("group_hash", pa.binary()),  # of the row's thread 1: equal for what must not be parted
        ("completion_chars", pa.int64()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("position", pa.int64()),
        ("row", pa.int64()),  # of the raw file
        ("thread", pa.int32()),  # of several in that row
        ("source", pa.int32()),
        ("content_hash", pa.binary()),
        ("group_hash", pa.binary()),
        ("num_tokens", pa.int64()),
        ("num_trained_tokens", pa.int64()),
        ("num_answer_tokens", pa.int64()),  # the trained ones without end tokens
    ]
)


def conversation_text(conversation: Conversation) -> str:
    """The whole conversation, roles left out."""
    return "\n".join(turn.content for turn in conversation)


def compared_text(conversation: Conversation, dedup: DedupSpec) -> str:
    """The text that deduplication compares."""
    if dedup.compare == "conversation":
        return conversation_text(conversation)
    return conversation_text(tuple(turn for turn in conversation if turn.role != "assistant"))


def read_file(
    batch: pa.Table,
    data: DataSpec,
    benchmarks: NgramIndex | None,
    corpus_url: str,
) -> Iterator[pa.Table]:
    """Read, normalise, decontaminate and sign one raw file.

    Args:
        batch: one line: `file` and the fields of a `SourceFile`.
        data: the spec.
        benchmarks: what must not be trained on, if anything.
        corpus_url: whose parts to write: of conversations; of their signatures; of rows that are no conversation; and
            of those that overlap with a benchmark, one line for each benchmark that a row meets. The latter three only
            where there are such.

    Yields:
        Tables of `KEY_SCHEMA`, one line per raw row, of a tree of messages one per thread. `position` is the
        conversation's place in the part; or it is null, and `gone` says why: `rejected` is what is no conversation,
        `filtered` a row of which the source's form leaves all out, `contaminated` what overlaps with a benchmark.
    """
    [item] = batch.to_pylist()
    number = item.pop("file")
    file = SourceFile(**item)
    source = data.sources[file.source]
    reader = RowReader(source.form, source.replace) if isinstance(source, SourceSpec) else RowReader("messages")
    position, num_rows = 0, 0
    raw_rows = Counted(read_rows(file, reader.columns))
    with (
        parquet_writer(part_url(f"{corpus_url}/{CONVERSATIONS}", number), CONVERSATION_SCHEMA) as writer,
        optional_parquet_writer(part_url(f"{corpus_url}/{SIGNATURES}", number), SIGNATURE_SCHEMA) as write_signatures,
        optional_parquet_writer(part_url(f"{corpus_url}/{REJECTED}", number), REJECTED_SCHEMA) as reject,
        optional_parquet_writer(part_url(f"{corpus_url}/{CONTAMINATED}", number), CONTAMINATED_SCHEMA) as report,
    ):
        for rows in batches(normalised(raw_rows, reader), _BATCH):
            bad = [row for row in rows if row.reason is not None]
            good, contaminated = _split([row for row in rows if row.conversation], benchmarks)
            filtered = [row for row in rows if row.reason is None and not row.conversation]
            writer.write_table(_conversation_table(good))
            reject(rejected_table(source.name, file.url, bad))
            report(contaminated_table(source.name, file.url, contaminated))
            gone = {REJECTED: bad, FILTERED: filtered, CONTAMINATED: [row for row, _ in contaminated]}
            write_signatures(_signature_table(good, data.dedup, source.duplicates))
            keys = _keys(number, position, good, gone)
            if len(keys) != len(rows):
                raise AssertionError(f"{len(rows)} conversations or bad rows of {file.url}, {len(keys)} came out")
            yield keys
            position, num_rows = position + len(good), num_rows + pc.sum(pc.equal(keys["thread"], 1)).as_py()
    if num_rows != raw_rows.count:
        raise AssertionError(f"{raw_rows.count} rows of {file.url} were read, {num_rows} came out")


def _split(rows: Sequence[Row], benchmarks: NgramIndex | None) -> tuple[Sequence[Row], list[tuple[Row, list[Overlap]]]]:
    """The clean rows, and the others with their overlaps."""
    if benchmarks is None:
        return rows, []
    pairs = list(zip(rows, benchmarks.find([row.conversation for row in rows]), strict=True))
    return [row for row, overlaps in pairs if not overlaps], [(row, overlaps) for row, overlaps in pairs if overlaps]


def _signature_table(rows: Sequence[Row], dedup: DedupSpec | None, duplicates: Literal["near", "exact"]) -> pa.Table:
    """Signature of each row, null for those of which only copies are to go; no lines where nothing is deduplicated."""
    if dedup is None:
        return SIGNATURE_SCHEMA.empty_table()
    if duplicates == "exact":
        return pa.table([pa.nulls(len(rows), pa.binary())], schema=SIGNATURE_SCHEMA)
    _, minima = band_keys([compared_text(row.conversation, dedup) for row in rows], dedup)
    return pa.table([pa.array([line.tobytes() for line in minima], pa.binary())], schema=SIGNATURE_SCHEMA)


def _keys(
    file: int,
    first_position: int,
    good: Sequence[Row],
    gone: Mapping[str, Sequence[Row]],
) -> pa.Table:
    hashes = [_content_hash(row.conversation) for row in good]
    lines: list[dict[str, Any]] = [
        {
            "file": file,
            "row": row.number,
            "thread": row.thread,
            "position": position,
            "content_hash": content_hash,
            "group_hash": content_hash if row.thread == 1 else _content_hash(row.first),
            "completion_chars": sum(len(turn.content) for turn in row.conversation if turn.role == "assistant"),
        }
        for position, (row, content_hash) in enumerate(zip(good, hashes, strict=True), first_position)
    ]
    lines += [
        {"file": file, "row": row.number, "thread": row.thread, "gone": why}
        for why, rows in gone.items()
        for row in rows
    ]
    return pa.Table.from_pylist(lines, schema=KEY_SCHEMA)


def _content_hash(conversation: Conversation) -> bytes:
    return hashlib.sha256(json.dumps(conversation).encode()).digest()[:16]


def _conversation_table(rows: Sequence[Row]) -> pa.Table:
    lines = [
        {
            "row": row.number,
            "thread": row.thread,
            "roles": [turn.role for turn in row.conversation],
            "contents": [turn.content for turn in row.conversation],
        }
        for row in rows
    ]
    return pa.Table.from_pylist(lines, schema=CONVERSATION_SCHEMA)


def read_conversations(table: pa.Table) -> list[Conversation]:
    """Conversations of a part's table."""
    return [
        tuple(Turn(role, content) for role, content in zip(line["roles"], line["contents"], strict=True))
        for line in table.to_pylist()
    ]


def read_signatures(lines: Lines, corpus_url: str) -> Iterator[np.ndarray]:
    """Signatures of some conversations, in order, a row group of a part at a time: uint32 [n, minima].

    Args:
        lines: of the conversations.
        corpus_url: whose parts to read.
    """
    for table in read_lines(lines, f"{corpus_url}/{SIGNATURES}"):
        yield np.frombuffer(b"".join(table["minima"].to_pylist()), dtype=np.uint32).reshape(len(table), -1)


def tokenise_file(batch: pa.Table, data: DataSpec, corpus_url: str) -> Iterator[pa.Table]:
    """Render and tokenise the kept conversations of one part.

    A source's system prompt comes in here, behind deduplication: it would make short conversations near-duplicates.

    Args:
        batch: one line: `file`, `source`, `kept` (positions), `content_hashes` and `group_hashes` (of the kept).
        data: the spec.
        corpus_url: whose conversation parts and tokenizer to read, and whose tokenised parts to write.

    Yields:
        Tables of `INDEX_SCHEMA`, one line per kept conversation.
    """
    [item] = batch.to_pylist()
    system_prompt = data.sources[item["source"]].system_prompt
    kept = read_parquet(part_url(f"{corpus_url}/{CONVERSATIONS}", item["file"])).take(item["kept"])
    position = 0
    with (
        local_directory(f"{corpus_url}/{TOKENIZER}") as tokenizer_directory,
        parquet_writer(part_url(f"{corpus_url}/{TOKENISED}", item["file"]), TOKENISED_SCHEMA) as writer,
    ):
        tokenizer = ChatTokenizer(Path(tokenizer_directory))
        for start in range(0, kept.num_rows, _BATCH):
            conversations = read_conversations(kept.slice(start, _BATCH))
            rendered = tokenizer.render([with_system_prompt(c, system_prompt) for c in conversations])
            writer.write_table(_tokenised_table(rendered))
            size = len(rendered)
            columns = [
                np.full(size, item["file"], dtype=np.int32),
                np.arange(position, position + size),
                *(kept[name].slice(start, size) for name in ("row", "thread")),
                np.full(size, item["source"], dtype=np.int32),
                *(
                    pa.array(item[name][start : start + size], pa.binary())
                    for name in ("content_hashes", "group_hashes")
                ),
                [len(r.tokens) for r in rendered],
                [int(r.trained.sum()) for r in rendered],
                [int(r.borders.answers.sum()) for r in rendered],
            ]
            yield pa.table(columns, schema=INDEX_SCHEMA)
            position += size


def _tokenised_table(rendered: Sequence[TokenisedConversation]) -> pa.Table:
    columns = [
        [r.tokens for r in rendered],
        [r.trained for r in rendered],
        [r.borders.ends for r in rendered],
        [r.borders.roles for r in rendered],
        [r.borders.answers for r in rendered],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, TOKENISED_SCHEMA, strict=True)]
    return pa.table(arrays, schema=TOKENISED_SCHEMA)
