"""A sweep in a terminal: while it runs, rounds and beams; when it has ended, what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.client.live_view import LiveView
from service.client.progress_view import describe_queue, describe_task, duration, heading
from service.client.tables import titled_table
from service.spec.resources import Sweep, SweepProgress
from service.spec.sweep import HELD_OUT_LOSS
from service.spec.sweep_results import (
    REPORT_PAGE_FILE,
    Agreement,
    Candidate,
    Estimate,
    StageResult,
    SweepResults,
    leaderboard,
)

_RESULTS_INTERVAL_S = 2.0
_SHOWN_WHILE_RUNNING = 10
_BAR_WIDTH = 20
_FILLS = (("█", "cyan"), ("▓", "green"), ("▒", "yellow"), ("░", "magenta"), ("▚", "blue"), ("▞", "red"))
"""Of a mix's categories, in order of their names; different also where there are no colours."""


class SweepView(LiveView):
    """Shows a sweep while it runs; give its `update` to `Sweeps.wait`.

    Args:
        console: where to.
        find_results: what a sweep of an id has found so far.
    """

    def __init__(self, console: Console, find_results: Callable[[str], SweepResults | None]) -> None:
        super().__init__(console)
        self._find_results = find_results
        self._results: SweepResults | None = None
        self._last_look = 0.0

    def update(self, sweep: Sweep) -> None:
        """Show how the sweep stands now."""
        if time.monotonic() - self._last_look > _RESULTS_INTERVAL_S or sweep.is_terminal:
            self._results = self._find_results(sweep.id)
            self._last_look = time.monotonic()
        progress = sweep.progress
        line = f"{sweep.id} {sweep.status}{describe_sweep(sweep, self._results)}"
        state = (sweep.status, progress.stage, progress.task, progress.round, progress.trials_ended)
        self.show(self._panel(sweep), line, state)

    def _panel(self, sweep: Sweep) -> RenderableType:
        progress = sweep.progress
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=progress.trials_planned or 1, completed=progress.trials_ended or 0, width=40))
        lines: list[RenderableType] = [heading(sweep)]
        if self._results is not None and self._results.stages:
            lines.append(Text("  ").join(_stage_text(stage) for stage in self._results.stages))
        lines += [bar, Text(describe_sweep(sweep, self._results).lstrip())]
        if self._results is not None and progress.stage is not None:
            lines.append(_narrowing(self._results, progress.stage))
        return Group(*lines)


def describe_sweep(sweep: Sweep, results: SweepResults | None = None) -> str:
    """Stage, round, trials, the best candidate and the time left, in one line."""
    progress = sweep.progress
    if sweep.is_terminal or progress.stage is None:
        return describe_queue(sweep)
    if progress.task is not None or progress.trials_ended is None:
        return describe_task(progress)
    parts = [progress.stage]
    if progress.round is not None:
        parts.append(f"round {progress.round + 1}")
    parts.append(f"trials {progress.trials_ended}/{progress.trials_planned}")
    if progress.best is not None and progress.best_score is not None:
        parts.append(f"best {progress.best} {progress.best_score:+.2%}")
    left_s = None if results is None else remaining_s(progress, results)
    return "  " + "  ".join(parts if left_s is None else [*parts, f"ETA {duration(left_s)}"])


def remaining_s(progress: SweepProgress, results: SweepResults) -> float | None:
    """Seconds until all trials that are due have ended, if they take as long as those of this stage did so far.

    None while none has ended, for there is nothing to go by.
    """
    trials = [trial for trial in results.trials if trial.stage == progress.stage]
    took_s = [trial.duration_s for trial in trials if trial.status == "succeeded"]
    if not took_s or progress.trials_planned is None or progress.trials_ended is None:
        return None
    at_once = max(1, sum(trial.status == "running" for trial in trials))
    return (progress.trials_planned - progress.trials_ended) * sum(took_s) / len(took_s) / at_once


def print_sweep(results: SweepResults, console: Console, run_url: str) -> None:
    """Print what a sweep found: a table a stage, whether stages agree, the verdict."""
    parts: list[RenderableType] = [leaderboard_table(results, stage) for stage in results.stages]
    parts.append(Text(f"\n{_legend(results)}", "dim"))
    parts += [_agreement(agreement) for agreement in results.agreements]
    if results.verdict:
        parts.append(Text("\nVerdict", style="bold"))
        parts += [Text(f"  {sentence}") for sentence in results.verdict]
    parts.append(
        Text.assemble(
            ("\nCost  ", "bold"),
            f"{duration(results.worker_seconds)} of workers' time, {duration(results.prepare_seconds)} for the data",
        )
    )
    console.print(Group(*parts))
    console.print(f"Report  {run_url}/{REPORT_PAGE_FILE}", highlight=False, markup=False, soft_wrap=True)


def leaderboard_table(results: SweepResults, stage: StageResult, *, only_beams: bool = False) -> Table:
    """A stage's candidates, the best first, in what 80 columns hold; the report has every figure's noise."""
    candidates = leaderboard(results, stage.name, only_beams=only_beams)
    metrics = sorted({name for candidate in candidates for name in candidate.gains})
    notes = [f"{stage.num_trials} trials"]
    if stage.noise is not None:
        notes.append(f"one trial's noise {stage.noise:.2%}")
    if stage.ended_by is not None:
        notes.append(f"ended by {stage.ended_by.replace('_', ' ')}")
    table = titled_table(f"\nStage {stage.name}: {', '.join(notes)}", "")
    table.padding = (0, 1, 0, 0)
    table.add_column("#", justify="right")
    table.add_column("id", no_wrap=True)
    table.add_column("mix", no_wrap=not any(candidate.fields for candidate in candidates))
    table.add_column("score", justify="right", no_wrap=True)
    for name in metrics:
        table.add_column(Text(_short(name).removesuffix(" loss")), justify="right", min_width=len("-10.0"))
    table.add_column("cost", justify="right", no_wrap=True)
    for candidate in candidates:
        table.add_row(
            _mark(candidate),
            "-" if candidate.rank is None else str(candidate.rank),
            candidate.id.removeprefix(f"{stage.name}-"),
            _values(candidate),
            _score(candidate.score),
            *(_gain(candidate, name, stage.clear_errors) for name in metrics),
            duration(candidate.worker_seconds),
            style="bold" if candidate.is_beam or candidate.is_promoted else None,
        )
    return table


def _mark(candidate: Candidate) -> Text:
    if candidate.broken:
        return Text("✗", "red")
    return Text("▲" if candidate.is_promoted else "●" if candidate.is_beam else "")


def _values(candidate: Candidate) -> str:
    """Shares in percent, in the order of the categories' names, and what else makes the candidate."""
    mixture = candidate.mixture
    parts = ["all" if mixture is None else "/".join(f"{100 * share:.0f}" for _, share in sorted(mixture.items()))]
    return " ".join([*parts, *_further(candidate)])


def _further(candidate: Candidate) -> list[str]:
    """What it changes beside the mix."""
    without = [] if candidate.left_out is None else [f"without {candidate.left_out}"]
    return without + [
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in candidate.fields.items()
    ]


def _score(score: Estimate | None) -> str:
    if score is None:
        return "-"
    return f"{100 * score.value:+.1f}" + ("" if score.noise is None else f" ±{100 * score.noise:.1f}")


def _gain(candidate: Candidate, metric: str, clear_errors: float | None) -> Text:
    gain = candidate.gains.get(metric)
    if gain is None:
        return Text("-")
    is_clear = gain.exceeds(clear_errors)
    style = "red" if metric in candidate.broken else "" if not is_clear else "green" if gain.value > 0 else "yellow"
    return Text(f"{100 * gain.value:+.1f}", style)


def mix_text(candidate: Candidate, categories: Sequence[str]) -> Text:
    """A candidate's mix as a bar and in numbers, and its other values."""
    text = Text()
    if candidate.mixture is None:
        text.append("all there is")
    else:
        text += _bar(candidate.mixture, categories)
        shares = (f"{category} {share:.0%}" for category, share in sorted(candidate.mixture.items()))
        text.append(" " + " ".join(shares))
    for further in _further(candidate):
        text.append(f" {further}")
    return text


def _bar(mixture: dict[str, float], categories: Sequence[str]) -> Text:
    """As many characters for each category as its share rounds to, `_BAR_WIDTH` in all."""
    bar, end, taken = Text(), 0.0, 0
    for category in categories:
        end += mixture.get(category, 0.0)
        width = round(end * _BAR_WIDTH) - taken
        fill, style = _FILLS[categories.index(category) % len(_FILLS)]
        bar.append(fill * width, style)
        taken += width
    return bar


def _categories(results: SweepResults) -> list[str]:
    return sorted({category for candidate in results.candidates for category in candidate.mixture or {}})


def _legend(results: SweepResults) -> str:
    parts = ["Gains over the base mix in %, of losses unless named otherwise; ids begin with their stage's name and -"]
    if categories := _categories(results):
        parts.append(f"mix: {'/'.join(categories)}")
    return "; ".join(parts) + "\n▲ promoted  ● beam  ✗ breaks a constraint"


def _narrowing(results: SweepResults, stage: str) -> Table:
    """The best candidates of the stage that runs; beams stand out."""
    table = Table.grid(padding=(0, 2))
    categories = _categories(results)
    for candidate in leaderboard(results, stage)[:_SHOWN_WHILE_RUNNING]:
        style = "bold" if candidate.is_beam else "dim"
        table.add_row(_marks(candidate), mix_text(candidate, categories), _estimate(candidate.score), style=style)
    return table


def _short(metric: str) -> str:
    task, _, name = metric.partition(".")
    return f"{name or 'mean'} loss" if task == HELD_OUT_LOSS else metric


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:+.2%}" + ("" if estimate.noise is None else f" ± {estimate.noise:.2%}")


def _marks(candidate: Candidate) -> Text:
    marks = Text("▲ promoted" if candidate.is_promoted else "● beam" if candidate.is_beam else "")
    if candidate.broken:
        marks.append(f" breaks {', '.join(_short(name) for name in candidate.broken)}", "red")
    return marks


def _agreement(agreement: Agreement) -> Text:
    alike = "too few or too alike to rank"
    if agreement.spearman is not None:
        alike = f"rank correlation {agreement.spearman:+.2f}"
    if agreement.chance is not None:
        alike += f" (by chance in {agreement.chance:.0%} of orders)"
    best = "the same best one" if agreement.same_best else "another best one"
    return Text(f"\n{agreement.first} and {agreement.second}, {agreement.num_candidates} candidates: {alike}, {best}")


_STAGE_MARKS = {
    "finished": ("✔", "green"),
    "running": ("●", "bold cyan"),
    "pending": ("○", "dim"),
    "unfinished": ("✘", "dim"),
}


def _stage_text(stage: StageResult) -> Text:
    mark, style = _STAGE_MARKS[stage.status]
    rounds = len(stage.best_score_by_round)
    return Text(f"{mark} {stage.name}" + (f" ({rounds} rounds)" if rounds > 1 else ""), style=style)
