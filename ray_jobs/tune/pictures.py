"""Pictures of a sweep, as SVG: its mixes in a triangle where there are three categories, else on parallel axes.

The better a candidate scored in its stage, the darker it is; beams have a rim.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from ray_jobs.html.charts import COLOURS, WIDTH, Line, lines, svg, text
from ray_jobs.tune.verdict import describe, signed
from service.spec.sweep_results import Candidate, Trial

_HEIGHT, _MARGIN = 420, 60
_CORNERS = ((0.5, 0.0), (0.0, 1.0), (1.0, 1.0))
"""Of the triangle: top, bottom left, bottom right, as shares of its box."""


class _Mark(NamedTuple):
    shares: tuple[float, ...]
    darkness: float
    is_beam: bool
    title: str


def mixes(candidates: Sequence[Candidate], categories: Sequence[str]) -> str:
    """All mixes of one stage; nothing where no candidate has one.

    Args:
        candidates: of the stage.
        categories: in order.
    """
    marks = _marks(candidates, categories)
    if not marks:
        return ""
    content = _ternary(marks, categories) if len(categories) == 3 else _parallel(marks, categories)
    return svg(_HEIGHT, content)


def curves(trials: Sequence[Trial], beams: Sequence[str]) -> str:
    """Loss of every trial by step; those of beams in colour.

    Args:
        trials: of one stage.
        beams: ids of candidates.
    """
    drawn = [
        Line(
            f"{trial.id}: {trial.curve[-1][1]:.4g} at step {trial.curve[-1][0]}",
            trial.curve,
            COLOURS[beams.index(trial.candidate) % len(COLOURS)] if trial.candidate in beams else "#c4c4c4",
        )
        for trial in sorted(trials, key=lambda trial: trial.candidate in beams)
        if trial.curve
    ]
    return lines(drawn, "step") if drawn else ""


def _marks(candidates: Sequence[Candidate], categories: Sequence[str]) -> list[_Mark]:
    shown = [candidate for candidate in candidates if candidate.mixture is not None]
    scores = [candidate.score.value for candidate in shown if candidate.score is not None]
    low, span = min(scores, default=0.0), (max(scores, default=0.0) - min(scores, default=0.0)) or 1.0
    return [
        _Mark(
            tuple((candidate.mixture or {}).get(category, 0.0) for category in categories),
            0.0 if candidate.score is None else (candidate.score.value - low) / span,
            candidate.is_beam,
            f"{candidate.id}: {describe(candidate)}" + (f"; {signed(candidate.score)}" if candidate.score else ""),
        )
        for candidate in sorted(shown, key=lambda candidate: candidate.is_beam)
    ]


def _ternary(marks: Sequence[_Mark], categories: Sequence[str]) -> list[str]:
    side = _HEIGHT - 2 * _MARGIN
    left = (WIDTH - side * 1.15) / 2

    def place(shares: Sequence[float]) -> tuple[float, float]:
        x, y = (sum(share * corner[axis] for share, corner in zip(shares, _CORNERS, strict=True)) for axis in (0, 1))
        return left + x * side * 1.15, _MARGIN + y * side

    corners = [place(tuple(float(number == one) for number in range(3))) for one in range(3)]
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    content = [f'<polygon points="{outline}" fill="none" stroke="#999"/>']
    anchors = ((0, -10, "middle"), (-6, 18, "end"), (6, 18, "start"))
    content += [
        text(x + dx, y + dy, name, anchor)
        for (x, y), (dx, dy, anchor), name in zip(corners, anchors, categories, strict=True)
    ]
    return content + [_dot(*place(mark.shares), mark) for mark in marks]


def _parallel(marks: Sequence[_Mark], categories: Sequence[str]) -> list[str]:
    step = (WIDTH - 2 * _MARGIN) / max(1, len(categories) - 1)
    xs = [_MARGIN + number * step for number in range(len(categories))]
    top, bottom = 30, _HEIGHT - 30
    content = []
    for x, name in zip(xs, categories, strict=True):
        content.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#999"/>')
        content += [
            text(x, 18, name, "middle"),
            text(x + 4, top + 10, "100%", "start"),
            text(x + 4, bottom, "0", "start"),
        ]
    for mark in marks:
        points = [(x, bottom - share * (bottom - top)) for x, share in zip(xs, mark.shares, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        width = 2.5 if mark.is_beam else 1
        content.append(
            f'<polyline points="{path}" fill="none" stroke="{_shade(mark)}" stroke-width="{width}">'
            f"<title>{escape(mark.title)}</title></polyline>"
        )
        content += [_dot(x, y, mark) for x, y in points]
    return content


def _dot(x: float, y: float, mark: _Mark) -> str:
    rim = "#222" if mark.is_beam else "none"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if mark.is_beam else 4}" fill="{_shade(mark)}" stroke="{rim}">'
        f"<title>{escape(mark.title)}</title></circle>"
    )


def _shade(mark: _Mark) -> str:
    """From a light blue for the worst to a dark one for the best."""
    return f"hsl(205, 60%, {80 - 50 * mark.darkness:.0f}%)"
