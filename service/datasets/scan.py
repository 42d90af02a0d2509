"""What a pass over a dataset's rows finds: the verdict on each, and what the conversations are like."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import dropwhile, islice

import pyarrow as pa
import pyarrow.compute as pc

from service.rows.chatml import segments
from service.rows.formats import Conversation, RowReader
from service.rows.normalise import Row, normalised, with_system_prompt
from service.rows.raw_rows import read_rows
from service.rows.sources import SourceFile
from service.spec.dataset import (
    Bucket,
    ChatSegment,
    DatasetReading,
    DatasetValidation,
    Preview,
    PreviewedRow,
    PreviewRequest,
    ReasonCount,
    RejectedRow,
    Statistics,
)
from service.spec.source import FileFormat

MAX_LISTED = 100
MAX_REASONS = 20
_MAX_TOLD_APART = 1000
"""Reasons counted by themselves; some quote a row, so there could be as many as rows."""
MAX_SHOWN_CHARS = 20_000
"""Of a previewed conversation."""


def dataset_rows(url: str, format: FileFormat, reading: DatasetReading) -> Iterator[Row]:
    """Each row of a file as a conversation, or with the reason why it is none."""
    reader = RowReader(reading.form, reading.replace)
    return normalised(read_rows(SourceFile(0, url, format, reading.header), reader.columns), reader)


def scan(rows: Iterable[Row]) -> tuple[DatasetValidation, Statistics]:
    """The verdict on all rows, and the statistics of those that are conversations."""
    verdict, counts = _Verdict(), _Counts()
    num_rows = 0
    for row in rows:
        num_rows += row.thread == 1
        verdict.take(row)
        if row.reason is None and row.conversation:
            counts.take(row.conversation)
    return verdict.result(num_rows, counts.num_conversations), counts.result(num_rows)


class _Verdict:
    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._rejected: list[RejectedRow] = []
        self._num_rejected = self._num_left_out = 0

    def take(self, row: Row) -> None:
        if row.reason is None:
            self._num_left_out += not row.conversation
            return
        self._num_rejected += 1
        if row.reason in self._reasons or len(self._reasons) < _MAX_TOLD_APART:
            self._reasons[row.reason] += 1
        if len(self._rejected) < MAX_LISTED:
            self._rejected.append(
                RejectedRow(row=row.number, thread=row.thread, reason=row.reason, excerpt=row.excerpt)
            )

    def result(self, num_rows: int, num_conversations: int) -> DatasetValidation:
        reasons = self._reasons.most_common(MAX_REASONS)
        return DatasetValidation(
            is_valid=num_conversations > 0 and not self._num_rejected,
            num_rows=num_rows,
            num_conversations=num_conversations,
            num_rejected=self._num_rejected,
            num_left_out=self._num_left_out,
            reasons=[ReasonCount(reason=reason, num_rows=count) for reason, count in reasons],
            rejected=self._rejected,
        )


class _Counts:
    def __init__(self) -> None:
        self.num_conversations = 0
        self._roles: Counter[str] = Counter()
        self._characters = self._trained = self._longest = 0
        self._lengths: Counter[int] = Counter()
        self._turns: Counter[int] = Counter()
        self._hashes = array("Q")
        """8 bytes a conversation: of 10 million different ones two have the same hash with probability 3e-6."""

    def take(self, conversation: Conversation) -> None:
        self.num_conversations += 1
        self._roles.update(turn.role for turn in conversation)
        characters = sum(len(turn.content) for turn in conversation)
        self._characters += characters
        self._trained += sum(len(turn.content) for turn in conversation if turn.role == "assistant")
        self._longest = max(self._longest, characters)
        self._lengths[characters.bit_length()] += 1
        self._turns[len(conversation).bit_length()] += 1
        self._hashes.append(_hash(conversation))

    def result(self, num_rows: int) -> Statistics:
        distinct = _num_distinct(self._hashes)
        return Statistics(
            num_rows=num_rows,
            num_conversations=self.num_conversations,
            num_turns=self._roles.total(),
            turns_by_role=dict(sorted(self._roles.items())),
            num_characters=self._characters,
            num_trained_characters=self._trained,
            num_distinct=distinct,
            num_duplicates=self.num_conversations - distinct,
            longest_characters=self._longest,
            mean_characters=self._characters / self.num_conversations if self.num_conversations else 0.0,
            characters=_buckets(self._lengths),
            turns=_buckets(self._turns),
        )


def _hash(conversation: Conversation) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for turn in conversation:
        content = turn.content.encode()
        digest.update(f"{turn.role}\n{len(content)}\n".encode())  # so that no text can forge a turn
        digest.update(content)
    return int.from_bytes(digest.digest(), "little")


def _num_distinct(hashes: array[int]) -> int:
    column = pa.Array.from_buffers(pa.uint64(), len(hashes), [None, pa.py_buffer(hashes)])
    return int(pc.count_distinct(column).as_py())


def _buckets(by_bit_length: Counter[int]) -> list[Bucket]:
    """Values of n bits, from the fewest to the most that occur, empty buckets between them too."""
    if not by_bit_length:
        return []
    return [
        Bucket(start=1 << (bits - 1) if bits else 0, end=(1 << bits) - 1, count=by_bit_length[bits])
        for bits in range(min(by_bit_length), max(by_bit_length) + 1)
    ]


def preview(rows: Iterable[Row], request: PreviewRequest) -> Preview:
    """Rows as they would be trained on, from `request.start` on."""
    wanted = dropwhile(lambda row: row.number < request.start, rows)
    shown = list(islice(wanted, request.limit + 1))
    previewed = [_previewed(row, request.system_prompt) for row in shown[: request.limit]]
    return Preview(rows=previewed, has_more=len(shown) > request.limit)


def _previewed(row: Row, system_prompt: str | None) -> PreviewedRow:
    if row.reason is not None or not row.conversation:
        return PreviewedRow(row=row.number, thread=row.thread, segments=[], reason=row.reason, excerpt=row.excerpt)
    shown: list[ChatSegment] = []
    room = MAX_SHOWN_CHARS
    for text, is_trained in segments(with_system_prompt(row.conversation, system_prompt)):
        if room > 0:
            shown.append(ChatSegment(text=text[:room], is_trained=is_trained))
        room -= len(text)
    return PreviewedRow(row=row.number, thread=row.thread, segments=shown, is_cut=room < 0)
