"""Where raw rows come from, and how a row holds its conversation."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from service.spec.base import SpecModel, conflict

DATASET_ID = r"ds-[0-9a-f]{1,16}-[0-9a-f]{16}"
URI_SCHEMES = ("file", "s3", "gs", "hf", "dataset")

Role = Literal["system", "user", "assistant", "tool"]
NamedForm = Literal["messages", "prompt_completion", "alpaca", "sharegpt"]
FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
ColumnName = Annotated[str, Field(min_length=1)]


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Literal text and the column that follows it, alternating; the last column may be None.

    Raises:
        ValueError: a brace is alone, or holds more than a name.
    """
    if "{" not in template and "}" not in template:
        return [("", template)]
    parts = []
    for literal, column, format_spec, conversion in Formatter().parse(template):
        if column == "" or format_spec or conversion:
            raise ValueError("braces hold a column's name and nothing else; write {{ for a brace")
        parts.append((literal, column))
    if not any(column for _, column in parts):
        raise ValueError("names no column; write {{ for a brace")
    return parts


def _valid_template(template: str) -> str:
    template_parts(template)
    return template


ColumnTemplate = Annotated[str, Field(min_length=1), AfterValidator(_valid_template)]
"""A column's name; or text in which each `{column}` stands for a column's text."""


class ColumnsForm(SpecModel):
    """A row holds one exchange, its parts in columns of any name."""

    kind: Literal["columns"]
    prompt: ColumnTemplate
    """Column of the user's turn, or text with `{column}` in it, such as `{question}\\n\\n{options}`."""
    completion: ColumnTemplate
    """Column of the assistant's turn, or text with `{column}` in it."""
    system: ColumnName | None = None
    """Column of the system turn; a row where it is missing, null or empty has none."""


class MessageFields(SpecModel):
    """Where a message holds what it says, and who says it."""

    role: ColumnName = "role"
    """Field of a message that says whose it is."""
    content: ColumnName = "content"
    """Field of a message with its text."""
    roles: dict[str, Role] = Field(default={role: role for role in get_args(Role)})
    """Role by what the field says; a conversation with any other speaker is malformed."""

    @model_validator(mode="after")
    def _has_assistant(self) -> Self:
        if "assistant" not in self.roles.values():
            raise conflict("roles", "makes nobody the assistant")
        return self


class TurnsForm(MessageFields):
    """A row holds a list of turns under any name."""

    kind: Literal["turns"]
    turns: ColumnName
    """Column with the list."""


class TreeForm(MessageFields):
    """A row holds a tree of messages, each with the replies to it; the defaults are Open Assistant's names.

    A conversation, or thread, goes from the root to an assistant's message behind which no other of the assistant's
    comes.
    """

    kind: Literal["tree"]
    root: ColumnName = "prompt"
    """Column with the first message."""
    replies: ColumnName = "replies"
    """Field of a message with the list of its replies; it may be missing or null."""
    role: ColumnName = "role"
    content: ColumnName = "text"
    roles: dict[str, Role] = Field(default={"prompter": "user", "assistant": "assistant"})
    rank: ColumnName = "rank"
    """Field of a message with its place among its siblings, a number, the best the lowest. Siblings without one come
    last, and those of one rank in the file's order."""
    threads: Literal["best", "all"] = "best"
    """Which conversations a tree gives: the one that takes the best reply each time, or all. Turns that several share
    are trained with each of them."""
    language: ColumnName = "lang"
    """Field of a message with its language."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Languages to take; by default all. A message in another is left out with all replies to it."""
    exclude: dict[ColumnName, bool | str] = Field(default={"deleted": True, "review_result": False})
    """Messages to leave out with all replies to them: those of which one of these fields has this value."""


class TextsForm(SpecModel):
    """A benchmark's row holds texts to look for, and no conversation need come of them."""

    kind: Literal["texts"]
    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """Columns with a text, or with a list of texts."""


def _form_tag(form: Any) -> str | None:
    if isinstance(form, str):
        return "named"
    return form.get("kind") if isinstance(form, dict) else getattr(form, "kind", None)


_FORMS = f"{', '.join(get_args(NamedForm))}, or a mapping of kind columns, turns, tree"
RowForm = Annotated[
    Annotated[NamedForm, Tag("named")]
    | Annotated[ColumnsForm, Tag("columns")]
    | Annotated[TurnsForm, Tag("turns")]
    | Annotated[TreeForm, Tag("tree")],
    Discriminator(_form_tag),
]


def _absolute(uri: str) -> str:
    if uri.startswith("/"):
        return f"file://{uri}"
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest:
        raise ValueError("not an absolute URI; a relative path is resolved by the client, against the spec's file")
    if scheme not in URI_SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; known: {', '.join(URI_SCHEMES)}")
    if scheme == "dataset" and re.fullmatch(DATASET_ID, rest) is None:
        raise ValueError(f"{rest!r} is no dataset's id")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError("the path of a file:// URI begins with a third slash")
    return uri


class FileSet(SpecModel):
    """Files of rows of one kind."""

    uri: Annotated[str, AfterValidator(_absolute)]
    """Absolute URI of a file, or a glob of files: `file://`, `s3://`, `gs://` or `hf://datasets/…`; plain or compressed
    (.gz, .bz2, .xz, .zst). `dataset://<id>` is a file that was uploaded to the service."""
    format: FileFormat | None = None
    """File format; by default told from the file name's extension. TSV is read without quoting."""
    header: tuple[ColumnName, ...] | None = Field(default=None, min_length=1)
    """Column names of a CSV or TSV file that has no line of them."""

    @model_validator(mode="after")
    def _header_fits_format(self) -> FileSet:
        if self.header is not None and self.format not in (None, "csv", "tsv"):
            raise conflict("header", f"a {self.format} file names its columns itself")
        return self


class BenchmarkSpec(FileSet):
    """An evaluation set that must not be trained on."""

    name: Name
    """Unique among the benchmarks; counts speak of it."""
    form: Annotated[
        Annotated[NamedForm, Tag("named")]
        | Annotated[ColumnsForm, Tag("columns")]
        | Annotated[TurnsForm, Tag("turns")]
        | Annotated[TreeForm, Tag("tree")]
        | Annotated[TextsForm, Tag("texts")],
        Discriminator(_form_tag, "unknown_form", f"unknown form; known: {_FORMS}, texts"),
    ]
    """How a row holds its texts: as a source's row does, or in columns (`kind: texts`)."""


class SourceBase(SpecModel):
    """What all sources have."""

    name: Name
    """Unique within the job; counts and errors speak of it."""
    category: Name
    """What the rows teach: `general`, `code`, `math`, `identity`, or a word of the user's own."""
    license: str | None = Field(default=None, min_length=1, max_length=200)
    """Licence of the rows, for the model card, such as `cc-by-4.0`; by default unknown."""
    system_prompt: str | None = Field(default=None, min_length=1)
    """System turn of the source's conversations that have none. Deduplication does not see it."""
    duplicates: Literal["near", "exact"] = "near"
    """Which duplicates of its rows deduplication removes: near ones, too, or only copies."""
    hold_out: bool = False
    """Keep all of its conversations, and copies of them in other sources, from training: they are what the loss is
    measured on, beside the share that `held_out_fraction` keeps of the others."""
    weight: float = Field(default=1.0, gt=0)
    """How readily the mixture takes a conversation of this source, against others of its category: one of weight 2
    comes up twice as fast. Without a mixture, or where it takes the whole category, it does nothing."""
    epochs: float | None = Field(default=None, gt=0, le=100)
    """How often its conversations are taken within one epoch of training: with a mixture at most so often, by default
    its category's `max_epochs`; without one just so often, by default once. 0.5 takes half of them, 1.5 all and half of
    them again."""


class SourceSpec(FileSet, SourceBase):
    """One set of raw instruction rows."""

    kind: Literal["files"] = "files"
    form: RowForm
    """How a row holds its conversation: the name of a common form, or a mapping of columns (`kind: columns`), of a list
    of turns (`kind: turns`) or of a tree of messages (`kind: tree`), which may hold several."""
    replace: dict[str, str] = Field(default={})
    """Literal text to replace in every turn, such as an end-of-text marker by nothing; all at once, of two that fit at
    one place the longer."""
    max_rows: int | None = Field(default=None, ge=1)
    """At most this many of its conversations, chosen by a hash of their content: which ones does not depend on the
    seed, nor on the order of rows and files. Taken before deduplication."""

    @field_validator("replace")
    @classmethod
    def _replaces_something(cls, replace: dict[str, str]) -> dict[str, str]:
        if "" in replace:
            raise ValueError("cannot replace the empty text")
        return replace
