"""Tables of one style, for a terminal."""

from __future__ import annotations

from rich.table import Table


def titled_table(title: str, *columns: str) -> Table:
    """An empty table: the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
