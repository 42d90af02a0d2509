"""Datasets, verdicts, statistics and previews, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from service.client.tables import titled_table
from service.spec.dataset import Bucket, Dataset, DatasetValidation, Preview, PreviewedRow, Statistics

OPEN, CLOSE = "⟦", "⟧"
_BAR = 30
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def datasets_table(datasets: Iterable[Dataset]) -> Table:
    """One a line."""
    table = Table(Column("id", no_wrap=True), "name", "status", "bytes", "created")
    for dataset in datasets:
        created = dataset.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        status = f"{dataset.status}: {dataset.error.message}" if dataset.error else dataset.status
        table.add_row(dataset.id, Text(_printable(dataset.name)), Text(status), f"{dataset.num_bytes:,}", created)
    return table


def print_validation(found: DatasetValidation, console: Console) -> None:
    """The verdict, the frequent reasons, and the first rows at fault."""
    verdict = "valid" if found.is_valid else "not valid"
    line = f"{verdict}: {found.num_conversations:,} conversations in {found.num_rows:,} rows"
    line += f", {found.num_rejected:,} rejected" if found.num_rejected else ""
    line += f", {found.num_left_out:,} left out by the form" if found.num_left_out else ""
    console.print(line, style="green" if found.is_valid else "red", highlight=False)
    if found.reasons:
        table = titled_table("Why", "reason", "rows")
        for count in found.reasons:
            table.add_row(Text(_printable(count.reason)), f"{count.num_rows:,}")
        console.print(table)
    for row in found.rejected[:10]:
        console.print(
            Text(f"row {row.row}: {_printable(row.reason)}", "bold"), Text(_printable(row.excerpt)), soft_wrap=True
        )


def print_statistics(found: Statistics, console: Console) -> None:
    """Counts, and histograms of the lengths."""
    table = titled_table("What is there", "of", "count")
    for name, value in (
        ("rows", found.num_rows),
        ("conversations", found.num_conversations),
        ("copies of another", found.num_duplicates),
        ("turns", found.num_turns),
        *((f"turns of {role}", count) for role, count in found.turns_by_role.items()),
        ("characters", found.num_characters),
        ("characters trained", found.num_trained_characters),
        ("characters of the longest", found.longest_characters),
    ):
        table.add_row(name, f"{value:,}")
    console.print(table)
    console.print(_histogram("Conversations by characters", found.characters))
    console.print(_histogram("Conversations by turns", found.turns))


def _histogram(title: str, buckets: list[Bucket]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        show_header=False,
        show_edge=False,
        pad_edge=False,
        box=None,
    )
    most = max((bucket.count for bucket in buckets), default=1)
    for bucket in buckets:
        values = f"{bucket.start:,}" if bucket.start == bucket.end else f"{bucket.start:,} - {bucket.end:,}"
        table.add_row(values, "█" * round(_BAR * bucket.count / most), f"{bucket.count:,}")
    return table


def print_preview(found: Preview, console: Console) -> None:
    """Rows with what is trained of them: coloured where that shows, else between ⟦ and ⟧."""
    is_plain = console.color_system is None or console.no_color
    for row in found.rows:
        console.print(Text(f"── {_describe(row)} ──", "red" if row.reason else "cyan"), soft_wrap=True)
        console.print(
            _marked(row, is_plain=is_plain) if row.segments else Text(_printable(row.excerpt)), soft_wrap=True
        )


def _describe(row: PreviewedRow) -> str:
    place = f"row {row.row}" + (f", thread {row.thread}" if row.thread > 1 else "")
    if row.reason is not None:
        return f"{place} · rejected: {_printable(row.reason)}"
    return place if row.segments else f"{place} · all of it left out by the form"


def _marked(row: PreviewedRow, *, is_plain: bool) -> Text:
    text = Text()
    for segment in row.segments:
        shown = _printable(segment.text)
        if not segment.is_trained:
            text.append(shown)
        elif is_plain:
            text.append(f"{OPEN}{shown}{CLOSE}")
        else:
            text.append(shown, "green")
    return text.append(" …") if row.is_cut else text


def _printable(text: str) -> str:
    """Text whose control characters, and marks that turn the direction of writing, are seen and do nothing."""
    return text.translate(_VISIBLE)
