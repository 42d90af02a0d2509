"""Live progress of a job: a panel that redraws itself in a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.client.live_view import LiveView
from service.client.report_view import sparkline
from service.spec.event import STAGES, Stage
from service.spec.resources import Job, JobProgress, Run, TaskProgress

_LOSSES_KEPT = 60


class ProgressView(LiveView):
    """Shows a job while it runs; give its `update` to `Jobs.wait`.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._losses: deque[float] = deque(maxlen=_LOSSES_KEPT)
        self._last_step: int | None = None

    def update(self, job: Job) -> None:
        """Show how the job stands now."""
        progress = job.progress
        if progress.step != self._last_step and progress.loss is not None:
            self._losses.append(progress.loss)
            self._last_step = progress.step
        line = f"{job.id} {job.status}{describe_progress(job)}"
        self.show(self._panel(job), line, (job.status, progress.stage, progress.task))

    def _panel(self, job: Job) -> RenderableType:
        progress = job.progress
        stages = Text("  ").join(_stage_text(stage, progress) for stage in STAGES)
        bar = Table.grid(padding=(0, 1))
        done, total = _done_and_total(progress)
        bar.add_row(ProgressBar(total=total or 1, completed=done or 0, width=40, pulse=total is None))
        lines: list[RenderableType] = [heading(job), stages, bar, Text(describe_progress(job).lstrip())]
        if self._losses:
            lines.append(Text(f"loss {sparkline(list(self._losses))}"))
        return Group(*lines)


def heading(run: Run) -> Text:
    """Name, id and status."""
    text = Text(f"{run.name}  {run.id}  ", style="bold") + Text(run.status, style="cyan")
    return text if run.queue_position is None else text.append(describe_queue(run))


def describe_queue(run: Run) -> str:
    """Its place in the queue, if it waits there."""
    return "" if run.queue_position is None else f"  number {run.queue_position} in the queue"


def describe_progress(job: Job) -> str:
    """Stage, task or step, and what is known of the step, in one line."""
    progress = job.progress
    if job.is_terminal or progress.stage is None:
        return describe_queue(job)
    if progress.stage == "train" and progress.step is not None:
        return "  ".join(["  train", *_step_parts(progress)])
    return describe_task(progress)


def describe_task(progress: TaskProgress) -> str:
    """Stage, task and how much of it is done, in one line."""
    if progress.task is None:
        return f"  {progress.stage}"
    of_total = "" if progress.total is None else f"/{progress.total:,}"
    eta = "" if progress.eta_s is None else f"  ETA {duration(progress.eta_s)}"
    return f"  {progress.stage}  {progress.task}: {progress.done:,}{of_total} {progress.unit}{eta}"


def _step_parts(progress: JobProgress) -> Iterator[str]:
    """What is known of the last step; a restarted job knows its step before its loss."""
    yield f"step {progress.step}/{progress.total_steps}"
    if progress.loss is not None:
        yield f"loss {progress.loss:.3f}"
    if progress.tokens_per_s is not None:
        yield f"{progress.tokens_per_s:,.0f} tokens/s"
    if progress.balance_loss is not None and progress.balance_loss_floor is not None:
        yield f"balance loss {progress.balance_loss:.4f} (floor {progress.balance_loss_floor:.4f})"
    if progress.learning_rate is not None:
        yield f"lr {progress.learning_rate:.2e}"
    if progress.model_flops_utilisation is not None:
        yield f"MFU {progress.model_flops_utilisation:.1%}"
    if progress.memory_bytes is not None:
        yield f"memory {progress.memory_bytes / 1e9:.2f} GB"
    if progress.eta_s is not None:
        yield f"ETA {duration(progress.eta_s)}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _stage_text(stage: Stage, progress: JobProgress) -> Text:
    now = next((place for place, name in enumerate(STAGES) if name == progress.stage), -1)
    place = STAGES.index(stage)
    mark, style = ("✔", "green") if place < now else ("●", "bold cyan") if place == now else ("○", "dim")
    return Text(f"{mark} {stage}", style=style)


def _done_and_total(progress: JobProgress) -> tuple[int | None, int | None]:
    if progress.stage == "train":
        return progress.step, progress.total_steps
    return progress.done, progress.total
