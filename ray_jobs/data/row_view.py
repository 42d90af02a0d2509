"""A packed row as a person reads it: its documents one below the other, decoded, with their categories and the mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from rich.console import Console
from rich.text import Text

from ray_jobs.data.marked_text import MarkedText, wants_markers
from ray_jobs.data.packed_directory import find_packed
from ray_jobs.data.packed_rows import PackedRow, PackedRows
from ray_jobs.run_directory import local_directory
from service.errors import InvalidSpecError


def show_row(url: str, split: Literal["train", "held_out"], number: int, console: Console) -> None:
    """Print a row.

    Args:
        url: of packed data, or of the directory that holds it.
        split: which rows.
        number: of the row, from 0.
        console: where to.

    Raises:
        SourceNotFoundError: there is no packed data.
        InvalidSpecError: there is no such row.
    """
    packed = find_packed(url)
    rows = PackedRows(f"{packed.url}/{split}")
    if not 0 <= number < len(rows):
        raise InvalidSpecError(f"there is no row {number} among the {len(rows)} of {split}, which are numbered from 0")
    row, length = rows[number], packed.manifest["packing"]["sequence_length"]
    with local_directory(packed.tokenizer_url) as tokenizer:
        marked = MarkedText(tokenizer, plain=wants_markers(console))
        heading = f"row {number} of {len(rows)} in {split}: documents {len(row.document_lengths)}, "
        heading += f"{amount(row.trained)}, fill {len(row.tokens) / length:.1%} of {length:,}"
        console.print(Text(heading, "bold"), soft_wrap=True)
        for line in _documents(row, marked):
            console.print(line, soft_wrap=True)


def amount(trained: np.ndarray) -> str:
    """How many of some tokens are trained, in words."""
    return f"{len(trained):,} tokens, {int(trained.sum()):,} trained ({trained.mean():.1%})"


def _documents(row: PackedRow, marked: MarkedText) -> Iterator[Text]:
    borders = np.cumsum(row.document_lengths)[:-1]
    pieces = zip(np.split(row.tokens, borders), np.split(row.trained, borders), strict=True)
    for number, (category, (tokens, trained)) in enumerate(zip(row.document_categories, pieces, strict=True), 1):
        yield Text(f"── document {number} · {category} · {amount(trained)} ──", "cyan")
        yield marked.write(tokens, trained)
