"""Tables and the like for a page that stands by itself; every word is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(columns: Iterable[str], lines: Iterable[Sequence[object]]) -> str:
    """A table; whole numbers get commas, and columns of text stand at the left.

    Args:
        columns: their headings.
        lines: cells, one for each column.
    """
    names, rows = list(columns), list(lines)
    shown = [[_shown(cell) for cell in row] for row in rows]
    kinds = [' class="text"' if any(_is_text(row[number]) for row in rows) else "" for number in range(len(names))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(names, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in shown
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def details(summary: str, content: str) -> str:
    """What is shown when its summary is clicked at.

    Args:
        summary: text.
        content: markup.
    """
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Text whose spaces and line ends count."""
    return f"<pre>{escape(text)}</pre>"


def spaced(name: str) -> str:
    """A field's name as words."""
    return name.replace("_", " ")


def _is_text(cell: object) -> bool:
    return isinstance(cell, str) and not cell.endswith("%")


def _shown(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
