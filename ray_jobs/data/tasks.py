"""The tasks that Ray Data runs on text: one file in, one Parquet part out, and only fixed-size keys back to the driver.

A part is named by its file's number, so a task that runs twice writes the same part again (`parquet_files`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_jobs.data.formats import FIELDS, Conversation, NotAConversationError, Turn, to_conversation
from ray_jobs.data.minhash import band_keys
from ray_jobs.data.parquet_files import parquet_writer, read_parquet
from ray_jobs.data.sources import RawRow, SourceFile, read_rows
from ray_jobs.data.tokenise import ChatTokenizer
from ray_jobs.run_directory import local_directory
from service.spec.data import DataSpec, DedupSpec

_BATCH = 512
"""Conversations handled at once: bounds a task's memory."""
_MAX_REASON_CHARS = 200

CONVERSATION_SCHEMA = pa.schema(
    [("row", pa.int64()), ("roles", pa.list_(pa.string())), ("contents", pa.list_(pa.string()))]
)
TOKENISED_SCHEMA = pa.schema([("tokens", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))])
KEY_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("row", pa.int64()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("content_hash", pa.binary()),
        ("completion_chars", pa.int64()),
        ("band_keys", pa.binary()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("position", pa.int64()),
        ("source", pa.int32()),
        ("content_hash", pa.binary()),
        ("num_tokens", pa.int64()),
        ("first_trained", pa.int64()),
    ]
)


def part_url(directory_url: str, file: int) -> str:
    """URL of a file's part."""
    return f"{directory_url}/part-{file:05d}.parquet"


def conversation_text(conversation: Conversation) -> str:
    """The text that deduplication compares: the whole conversation, roles left out."""
    return "\n".join(turn.content for turn in conversation)


def read_file(batch: pa.Table, data: DataSpec, directory_url: str) -> Iterator[pa.Table]:
    """Read, normalise and sign one raw file.

    Args:
        batch: one line: `file`, `source`, `url`, `format`.
        data: the spec.
        directory_url: of the conversation parts.

    Yields:
        Tables of `KEY_SCHEMA`, one line per raw row; `position` is the conversation's place in the part, and null with
        `reason` given for a row that is no conversation.
    """
    [item] = batch.to_pylist()
    file = SourceFile(item["source"], item["url"], item["format"])
    form = data.sources[file.source].form
    position = 0
    with parquet_writer(part_url(directory_url, item["file"]), CONVERSATION_SCHEMA) as writer:
        for rows in _batches(read_rows(file, FIELDS[form])):
            parsed = [(row, *_parse(row, form)) for row in rows]
            good = [(row, conversation) for row, conversation, _ in parsed if conversation is not None]
            bad = [(row, reason) for row, conversation, reason in parsed if conversation is None]
            writer.write_table(_conversation_table(good))
            yield _keys(item["file"], position, good, bad, data.dedup)
            position += len(good)


def _parse(row: RawRow, form: Any) -> tuple[Conversation | None, str | None]:
    if row.reason is not None:
        return None, row.reason
    try:
        return to_conversation(row.value, form), None
    except NotAConversationError as error:
        return None, str(error)[:_MAX_REASON_CHARS]


def _keys(
    file: int,
    first_position: int,
    good: list[tuple[RawRow, Conversation]],
    bad: list[tuple[RawRow, str | None]],
    dedup: DedupSpec | None,
) -> pa.Table:
    conversations = [conversation for _, conversation in good]
    bands: list[bytes | None] = [None] * len(good)
    if dedup is not None and good:
        bands = [row.tobytes() for row in band_keys([conversation_text(c) for c in conversations], dedup)]
    lines: list[dict[str, Any]] = [
        {
            "file": file,
            "row": row.number,
            "position": first_position + offset,
            "content_hash": _content_hash(conversation),
            "completion_chars": sum(len(turn.content) for turn in conversation if turn.role == "assistant"),
            "band_keys": band,
        }
        for offset, ((row, conversation), band) in enumerate(zip(good, bands, strict=True))
    ]
    lines += [{"file": file, "row": row.number, "reason": reason} for row, reason in bad]
    return pa.Table.from_pylist(lines, schema=KEY_SCHEMA)


def _content_hash(conversation: Conversation) -> bytes:
    return hashlib.sha256(json.dumps(conversation).encode()).digest()[:16]


def _conversation_table(rows: list[tuple[RawRow, Conversation]]) -> pa.Table:
    lines = [
        {"row": row.number, "roles": [t.role for t in conversation], "contents": [t.content for t in conversation]}
        for row, conversation in rows
    ]
    return pa.Table.from_pylist(lines, schema=CONVERSATION_SCHEMA)


def read_conversations(table: pa.Table) -> list[Conversation]:
    """Conversations of a part's table."""
    return [
        tuple(Turn(role, content) for role, content in zip(line["roles"], line["contents"], strict=True))
        for line in table.to_pylist()
    ]


def tokenise_file(
    batch: pa.Table, conversations_url: str, tokenised_url: str, tokenizer_url: str
) -> Iterator[pa.Table]:
    """Render and tokenise the kept conversations of one part.

    Args:
        batch: one line: `file`, `source`, `kept` (positions), `content_hashes` (of the kept).
        conversations_url: directory of the conversation parts.
        tokenised_url: directory to write to.
        tokenizer_url: of a Hugging Face tokenizer.

    Yields:
        Tables of `INDEX_SCHEMA`, one line per kept conversation.
    """
    [item] = batch.to_pylist()
    kept = read_parquet(part_url(conversations_url, item["file"])).take(item["kept"])
    position = 0
    with (
        local_directory(tokenizer_url) as tokenizer_directory,
        parquet_writer(part_url(tokenised_url, item["file"]), TOKENISED_SCHEMA) as writer,
    ):
        tokenizer = ChatTokenizer(Path(tokenizer_directory))
        for start in range(0, kept.num_rows, _BATCH):
            rendered = tokenizer.render(read_conversations(kept.slice(start, _BATCH)))
            tokens = pa.array([r.tokens for r in rendered], pa.list_(pa.int32()))
            trained = pa.array([r.trained for r in rendered], pa.list_(pa.bool_()))
            writer.write_table(pa.table([tokens, trained], schema=TOKENISED_SCHEMA))
            size = len(rendered)
            columns = [
                np.full(size, item["file"], dtype=np.int32),
                np.arange(position, position + size),
                np.full(size, item["source"], dtype=np.int32),
                pa.array(item["content_hashes"][start : start + size], pa.binary()),
                [len(r.tokens) for r in rendered],
                [int(r.trained.argmax()) for r in rendered],
            ]
            yield pa.table(columns, schema=INDEX_SCHEMA)
            position += size


def _batches(rows: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _BATCH)):
        yield chunk
