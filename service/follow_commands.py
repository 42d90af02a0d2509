"""`sleddog watch`, `events`, `logs` and `metrics`: what a job does."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.client.client import Client
from service.client.progress_view import ProgressView
from service.client.report_view import sparkline
from service.client.runs import require_success
from service.command_line import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    JobId,
    Key,
    RunId,
    Url,
    clean_errors,
    connected,
    out,
    print_line,
    runs_of,
)
from service.spec.resources import Job, JobEvent

follow_app = typer.Typer()


def follow(client: Client, job_id: str, console: Console, *, as_json: bool = False) -> None:
    """Show how a job stands until it has ended.

    Args:
        client: of the service.
        job_id: of the job.
        console: where a panel, or a line every few seconds, is shown.
        as_json: print each state as a line of JSON instead.

    Raises:
        JobFailedError: it failed or was cancelled.
    """
    last: Job | None = None
    with ProgressView(console) as view:
        for last in client.jobs.watch(job_id):
            print_line(last) if as_json else view.update(last)
    assert last is not None, "how it stands is told at once"
    require_success(last)


@follow_app.command()
@clean_errors
def watch(
    job_id: JobId,
    as_json: Annotated[bool, typer.Option("--json", help="Print each state as a line of JSON.")] = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Follow a job to its end; Ctrl-C stops looking, not the job."""
    with connected(url, api_key, data_dir) as client:
        follow(client, job_id, out, as_json=as_json)


@follow_app.command()
@clean_errors
def events(
    run_id: RunId,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Sequence of the last event already seen.")] = 0,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print what has happened in a job or a sweep, a line an event."""
    with connected(url, api_key, data_dir) as client:
        runs = runs_of(client, run_id)
        ask = runs.stream_events if follow_it else runs.all_events
        for event in ask(run_id, after=after):
            print_line(event) if as_json else _print_event(event)


@follow_app.command()
@clean_errors
def logs(
    run_id: RunId,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last lines.")] = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each part that comes.")] = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print what the driver and the workers of a job or a sweep printed."""
    with connected(url, api_key, data_dir) as client:
        runs = runs_of(client, run_id)
        parts = runs.stream_logs(run_id, tail=tail) if follow_it else [runs.logs(run_id, tail=tail)]
        for part in parts:
            sys.stdout.write(json.dumps({"log": part}) + "\n" if as_json else part)
            sys.stdout.flush()


@follow_app.command()
@clean_errors
def metrics(
    job_id: JobId,
    name: Annotated[
        list[str] | None, typer.Option(help="Only these, or what lies below them; may be repeated.")
    ] = None,
    from_step: Annotated[int | None, typer.Option(min=0, help="First step.")] = None,
    to_step: Annotated[int | None, typer.Option(min=0, help="Last step.")] = None,
    max_points: Annotated[int, typer.Option(min=2, max=10_000, help="Of each curve.")] = 500,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the curves of a job's metrics."""
    with connected(url, api_key, data_dir) as client:
        curves = client.jobs.curves(job_id, name, from_step=from_step, to_step=to_step, max_points=max_points)
    if as_json:
        typer.echo(json.dumps([curve.model_dump() for curve in curves], indent=2))
        return
    table = Table("metric", "steps", "first", "last", "least", "most", "")
    for curve in curves:
        values = (curve.values[0], curve.values[-1], curve.min, curve.max)
        table.add_row(
            curve.name, f"{curve.num_points:,}", *(f"{value:.5g}" for value in values), sparkline(curve.values)
        )
    out.print(table)


def _print_event(event: JobEvent) -> None:
    time = event.time.astimezone().strftime("%H:%M:%S")
    facts = "  ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in event.data.items()
        if isinstance(value, (str, int, float))
    )
    line = f"{event.sequence:>6}  {time}  {event.type:<16}  {event.stage or '':<8}  {event.message}  {facts}"
    out.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)
