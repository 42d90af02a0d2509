"""The first rows of a raw file as they would be trained on, or the reason why they would not: before a job exists."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from ray_jobs.data.marked_text import MarkedText, printable, wants_markers
from ray_jobs.data.row_view import amount
from ray_jobs.data.tasks import conversation_text
from ray_jobs.data.tokenise import ChatTokenizer
from ray_jobs.data.tokenizer_files import make_tokenizer
from service.errors import EmptyDataError, InvalidSpecError
from service.rows.formats import RowReader
from service.rows.normalise import Row, normalised, with_system_prompt
from service.rows.raw_rows import read_rows
from service.rows.sources import files_of
from service.spec.base import field_errors
from service.spec.model import ModelSpec
from service.spec.source import SourceSpec, TreeForm

_ROWS_TRAINED_ON = 10_000
"""Of the file, for a tokenizer of its own: enough to see masks, in seconds."""


def preview_source(fields: dict[str, Any]) -> SourceSpec:
    """The source that a preview reads.

    Args:
        fields: of a source, without name and category; a form may be the JSON of a mapping.

    Raises:
        InvalidSpecError: a field is not as it should be.
    """
    form = fields["form"]
    try:
        form = json.loads(form) if form.lstrip().startswith("{") else form
    except ValueError as error:
        raise InvalidSpecError(f"neither a form's name nor JSON: {error}", "form") from None
    document = {"name": "preview", "category": "preview", **fields, "form": form}
    try:
        return SourceSpec.model_validate(document)
    except ValidationError as error:
        fault = field_errors(error.errors(), document)[0]
        raise InvalidSpecError(fault.message, fault.field or None) from None


def show_rows(source: SourceSpec, model: ModelSpec, num_rows: int, console: Console) -> None:
    """Print the first rows of a source, rendered with the trained tokens marked.

    Args:
        source: to read.
        model: whose tokenizer to use; one that is to be trained is trained on the beginning of the source.
        num_rows: at most.
        console: where to.

    Raises:
        SleddogError: there is no such file, the tokenizer cannot render chats, or there is no row.
    """
    shown = 0
    with tempfile.TemporaryDirectory() as scratch:
        texts = (
            conversation_text(row.conversation) for row in islice(_rows(source), _ROWS_TRAINED_ON) if not row.reason
        )
        make_tokenizer(model, texts, scratch)
        chat, marked = ChatTokenizer(Path(scratch)), MarkedText(Path(scratch), plain=wants_markers(console))
        for row in islice(_rows(source), num_rows):
            for line in _lines(row, source, chat, marked):
                console.print(line, soft_wrap=True)
            shown += 1
    if not shown:
        raise EmptyDataError(f"{source.uri} holds no row")


def _rows(source: SourceSpec) -> Iterator[Row]:
    reader = RowReader(source.form, source.replace)
    for file in files_of(source, 0, "source"):
        yield from normalised(read_rows(file, reader.columns), reader)


def _lines(row: Row, source: SourceSpec, chat: ChatTokenizer, marked: MarkedText) -> Iterator[Text]:
    place = f"row {row.number}" + (f", thread {row.thread}" if isinstance(source.form, TreeForm) else "")
    if row.reason is not None:
        yield Text(f"── {place} · rejected: {printable(row.reason)} ──", "red")
        yield Text(printable(row.excerpt))
        return
    if not row.conversation:
        yield Text(f"── row {row.number} · all of it left out by the form ──", "red")
        return
    [rendered] = chat.render([with_system_prompt(row.conversation, source.system_prompt)])
    if rendered.borders.answers.any():
        yield Text(f"── {place} · {amount(rendered.trained)} ──", "cyan")
    else:
        yield Text(f"── {place} · rejected: no reply has a token to train, {amount(rendered.trained)} ──", "red")
    yield marked.write(rendered.tokens, rendered.trained)
