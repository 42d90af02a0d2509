"""Charts as SVG that stands in a page by itself: bars of several parts, a histogram, lines.

No plotting library: those draw the same at a hundred times the size, or by a script that is loaded. Every word is
escaped; a part's exact number is its tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#2f6f9f", "#d9822b", "#4c9a5a", "#a45c9d", "#8c8c3c", "#b5504e", "#5b6abf", "#7a7a7a")
WIDTH, _LABEL_WIDTH, _NOTE_WIDTH, _BAR, _GAP, _FONT = 760, 170, 250, 16, 6, 12
_LABEL_CHARS = 24
_HEIGHT = 180


class Bar(NamedTuple):
    """A line of a bar chart.

    Attributes:
        label: before it.
        parts: its lengths, one for each colour.
        note: behind it.
    """

    label: str
    parts: Sequence[float]
    note: str


def bars(lines: Sequence[Bar], names: Sequence[str], longest: float | None = None) -> str:
    """Horizontal bars, the parts of each one behind the other.

    Args:
        lines: from top to bottom.
        names: of the parts.
        longest: what fills the width; by default the longest line.
    """
    longest = longest or max((sum(line.parts) for line in lines), default=0) or 1
    room = WIDTH - _LABEL_WIDTH - _NOTE_WIDTH
    content = []
    for number, line in enumerate(lines):
        y, x = number * (_BAR + _GAP), float(_LABEL_WIDTH)
        content.append(text(_LABEL_WIDTH - 8, y + _BAR - 4, _short(line.label), "end"))
        for colour, (name, value) in enumerate(zip(names, line.parts, strict=True)):
            width = value / longest * room
            content.append(_rectangle((x, y, width, _BAR), colour, f"{line.label} · {name}: {value:,.6g}"))
            x += width
        content.append(text(x + 6, y + _BAR - 4, line.note, "start"))
    return legend(names) + svg(len(lines) * (_BAR + _GAP), content)


def histogram(edges: Sequence[int], counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Upright bars side by side, the parts of each one upon the other.

    Args:
        edges: of the bins, one more than there are bins.
        counts: by part, then by bin.
        names: of the parts.
    """
    totals = [sum(column) for column in zip(*counts, strict=True)]
    tallest, width = max(totals, default=0) or 1, (WIDTH - 60) / max(len(totals), 1)
    content = [text(52, 12, f"{tallest:,}", "end"), text(52, _HEIGHT, "0", "end")]
    for index in range(len(totals)):
        x, y = 60 + index * width, float(_HEIGHT)
        span = f"{edges[index]:,} to {edges[index + 1] - 1:,} tokens"
        for colour, (name, part) in enumerate(zip(names, counts, strict=True)):
            height = part[index] / tallest * (_HEIGHT - 10)
            y -= height
            content.append(_rectangle((x, y, width - 1, height), colour, f"{span} · {name}: {part[index]:,}"))
        content.append(text(x, _HEIGHT + 16, f"{edges[index]:,}", "start") if index % 4 == 0 else "")
    return legend(names) + svg(_HEIGHT + 22, content)


class Line(NamedTuple):
    """A line of a line chart.

    Attributes:
        title: its tooltip.
        points: x and y, in order of x.
        colour: of CSS.
    """

    title: str
    points: Sequence[tuple[float, float]]
    colour: str


def lines(drawn: Sequence[Line], x_name: str, *, zero: bool = False) -> str:
    """Lines over a common x axis that begins at 0; the first ones lie below the others.

    Args:
        drawn: at least one of them with a point.
        x_name: what x is.
        zero: whether the y axis begins at 0, not at the least value.
    """
    points = [point for line in drawn for point in line.points]
    last = max(x for x, _ in points) or 1
    low, high = min([y for _, y in points] + [0.0] * zero), max(y for _, y in points)
    left, width, span = 60, WIDTH - 70, (high - low) or 1.0
    content = [text(left - 6, 14, f"{high:.3g}", "end"), text(left - 6, _HEIGHT, f"{low:.3g}", "end")]
    for line in drawn:
        place = " ".join(
            f"{left + x / last * width:.1f},{10 + (high - y) / span * (_HEIGHT - 10):.1f}" for x, y in line.points
        )
        content.append(
            f'<polyline points="{place}" fill="none" stroke="{line.colour}" stroke-width="1.5">'
            f"<title>{escape(line.title)}</title></polyline>"
        )
    content.append(text(left + width, _HEIGHT + 16, f"{x_name} {last:,g}", "end"))
    return svg(_HEIGHT + 22, content)


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARS else label[: _LABEL_CHARS - 1] + "…"


def svg(height: float, content: Sequence[str]) -> str:
    """A picture as wide as all are."""
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(content)}</svg>'


def _rectangle(box: tuple[float, float, float, float], colour: int, title: str) -> str:
    x, y, width, height = box
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{COLOURS[colour % len(COLOURS)]}"><title>{escape(title)}</title></rect>'


def text(x: float, y: float, words: str, anchor: str) -> str:
    """Words at a place; the anchor is `start`, `middle` or `end`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{_FONT}" text-anchor="{anchor}">{escape(words)}</text>'


def legend(names: Sequence[str]) -> str:
    """Which colour is whose; nothing where there is but one."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li style="--colour:{COLOURS[number % len(COLOURS)]}">{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'
