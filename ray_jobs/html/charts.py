"""Two kinds of chart as SVG that stands in a page by itself: bars of several parts, and a histogram.

No plotting library: those draw the same at a hundred times the size, or by a script that is loaded. Every word is
escaped; a part's exact number is its tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#2f6f9f", "#d9822b", "#4c9a5a", "#a45c9d", "#8c8c3c", "#b5504e", "#5b6abf", "#7a7a7a")
_WIDTH, _LABEL_WIDTH, _NOTE_WIDTH, _BAR, _GAP, _FONT = 760, 170, 250, 16, 6, 12
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
    room = _WIDTH - _LABEL_WIDTH - _NOTE_WIDTH
    content = []
    for number, line in enumerate(lines):
        y, x = number * (_BAR + _GAP), float(_LABEL_WIDTH)
        content.append(_text(_LABEL_WIDTH - 8, y + _BAR - 4, _short(line.label), "end"))
        for colour, (name, value) in enumerate(zip(names, line.parts, strict=True)):
            width = value / longest * room
            content.append(_rectangle((x, y, width, _BAR), colour, f"{line.label} · {name}: {value:,.6g}"))
            x += width
        content.append(_text(x + 6, y + _BAR - 4, line.note, "start"))
    return _legend(names) + _svg(len(lines) * (_BAR + _GAP), content)


def histogram(edges: Sequence[int], counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Upright bars side by side, the parts of each one upon the other.

    Args:
        edges: of the bins, one more than there are bins.
        counts: by part, then by bin.
        names: of the parts.
    """
    totals = [sum(column) for column in zip(*counts, strict=True)]
    tallest, width = max(totals, default=0) or 1, (_WIDTH - 60) / max(len(totals), 1)
    content = [_text(52, 12, f"{tallest:,}", "end"), _text(52, _HEIGHT, "0", "end")]
    for index in range(len(totals)):
        x, y = 60 + index * width, float(_HEIGHT)
        span = f"{edges[index]:,} to {edges[index + 1] - 1:,} tokens"
        for colour, (name, part) in enumerate(zip(names, counts, strict=True)):
            height = part[index] / tallest * (_HEIGHT - 10)
            y -= height
            content.append(_rectangle((x, y, width - 1, height), colour, f"{span} · {name}: {part[index]:,}"))
        content.append(_text(x, _HEIGHT + 16, f"{edges[index]:,}", "start") if index % 4 == 0 else "")
    return _legend(names) + _svg(_HEIGHT + 22, content)


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARS else label[: _LABEL_CHARS - 1] + "…"


def _svg(height: float, content: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(content)}</svg>'


def _rectangle(box: tuple[float, float, float, float], colour: int, title: str) -> str:
    x, y, width, height = box
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{COLOURS[colour % len(COLOURS)]}"><title>{escape(title)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{_FONT}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li style="--colour:{COLOURS[number % len(COLOURS)]}">{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'
