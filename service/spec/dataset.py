"""Datasets that users upload: what is asked and answered about them.

A dataset is one file. It is uploaded in parts, each with a checksum, then put together and verified; from then on it
never changes, so a verdict on it holds for ever. A job's source names it as `dataset://<id>`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.spec.base import SpecModel
from service.spec.resources import JobError, Resource
from service.spec.source import ColumnName, FileFormat, RowForm

DatasetStatus = Literal["uploading", "verifying", "ready", "rejected"]
ScanStatus = Literal["running", "finished", "failed"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""In lower-case hex."""


class DatasetSpec(SpecModel):
    """A file that is to be uploaded."""

    name: str = Field(min_length=1, max_length=255)
    """The file's name; its extension tells format and compression, as of a source's file."""
    num_bytes: int = Field(ge=1)
    """Of the whole file."""
    part_bytes: int | None = Field(default=None, ge=1)
    """Size of each part but the last; by default the service's choice."""
    format: FileFormat | None = None
    """Where the name does not tell it."""


class Dataset(Resource):
    """An uploaded file, or one that is being uploaded."""

    id: str
    uri: str
    """What a source of a job says to read it."""
    name: str
    status: DatasetStatus
    """`uploading` takes parts; `verifying` is being put together, hashed and measured; `ready` can be used; `rejected`
    is not what was announced, and `error` says why."""
    format: FileFormat
    num_bytes: int
    part_bytes: int
    num_parts: int
    sha256: str | None = None
    """Of the whole file, in hex; null while `uploading`."""
    decompressed_bytes: int | None = None
    """What the file decompresses to, for Parquet its columns; its own size where it is not compressed. Null until it is
    `ready`."""
    error: JobError | None = None
    created_at: datetime
    ready_at: datetime | None = None


class DatasetPart(Resource):
    """A part that has arrived."""

    number: int
    """From 1."""
    num_bytes: int
    sha256: str


class DatasetCompletion(BaseModel):
    """Says that all parts are there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sha256: Sha256
    """Of the whole file."""


class DatasetReading(SpecModel):
    """How a dataset's rows are to be read: as a job's source would."""

    form: RowForm = "messages"
    """How a row holds its conversation, as in a source."""
    header: tuple[ColumnName, ...] | None = Field(default=None, min_length=1)
    """Column names of a CSV or TSV file that has no line of them."""
    replace: dict[str, str] = Field(default={})
    """Literal text to replace in every turn, as in a source."""
    system_prompt: str | None = Field(default=None, min_length=1)
    """System turn of the conversations that have none, as in a source."""


class PreviewRequest(DatasetReading):
    """Which rows to show."""

    start: int = Field(default=1, ge=1, le=1_000_000)
    """First row to show, from 1; those before are read over."""
    limit: int = Field(default=10, ge=1, le=100)
    """Rows at most."""


class ChatSegment(Resource):
    """A piece of a rendered conversation."""

    text: str
    is_trained: bool
    """Whether its tokens are targets of the loss."""


class PreviewedRow(Resource):
    """A row as it would be trained on, or why it would not be."""

    row: int
    """From 1, as a person would count: a line, a record, an element."""
    thread: int = 1
    """Of a row that holds a tree of messages, from 1."""
    segments: list[ChatSegment]
    """The conversation as ChatML; empty for a row that is none. One that is cut ends with what was shown of it."""
    is_cut: bool = False
    """Whether the conversation is longer than what is shown."""
    reason: str | None = None
    """Why the row is no conversation; null for one that is, and for one of which the form leaves all out."""
    excerpt: str = ""
    """The beginning of a row that is none."""


class Preview(Resource):
    """Some rows of a dataset."""

    rows: list[PreviewedRow]
    has_more: bool
    """Whether there are rows behind these."""


class RejectedRow(Resource):
    """A row that would stop a job, or be skipped."""

    row: int
    thread: int = 1
    reason: str
    excerpt: str = ""


class ReasonCount(Resource):
    """How many rows are rejected for one reason."""

    reason: str
    num_rows: int


class DatasetValidation(Resource):
    """The verdict on every row: the same that a job's preparation gives."""

    is_valid: bool
    """Whether there is a conversation, and no row is rejected."""
    num_rows: int
    """As read; a row that cannot be decoded counts."""
    num_conversations: int
    num_rejected: int
    """Rows, or threads of a row that holds a tree, that are no conversation."""
    num_left_out: int
    """Rows of which the form leaves all out."""
    reasons: list[ReasonCount]
    """The most frequent reasons, of at most 20."""
    rejected: list[RejectedRow]
    """The first 100."""


class Bucket(Resource):
    """A part of a histogram."""

    start: int
    """Smallest value in it."""
    end: int
    """Largest value in it."""
    count: int


class Statistics(Resource):
    """What a dataset's conversations are like; rejected rows are not among them."""

    num_rows: int
    num_conversations: int
    num_turns: int
    turns_by_role: dict[str, int]
    num_characters: int
    """Of all turns."""
    num_trained_characters: int
    """Of the assistant's turns."""
    num_distinct: int
    """Conversations that differ from one another in a role or a character."""
    num_duplicates: int
    """Copies: conversations beyond the distinct ones."""
    longest_characters: int
    mean_characters: float
    """Of a conversation; 0 where there is none."""
    characters: list[Bucket]
    """Histogram of conversations by their characters, in powers of 2."""
    turns: list[Bucket]
    """Histogram of conversations by their turns, in powers of 2."""


Result = TypeVar("Result")


class Scan(Resource, Generic[Result]):
    """What one pass over a dataset has found; asking again gives the same pass."""

    dataset_id: str
    status: ScanStatus
    """`running` has not ended, or not begun; `failed` could not be done, and `error` says why."""
    error: JobError | None = None
    result: Result | None = None
    """Set when `finished`."""
