"""`sleddog sweep …`: sweeps over data mixes, from a spec to the job of the winner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.client.client import Client
from service.client.progress_view import ProgressView
from service.client.report_view import print_report
from service.client.spec_file import load_sweep
from service.client.sweep_view import SweepView, describe_sweep, leaderboard_table, print_sweep
from service.client.sweeps import SweepHandle
from service.command_line import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Key,
    Priority,
    Url,
    cancelled_on_exit,
    clean_errors,
    connected,
    err,
    local_service,
    out,
    print_json,
    print_runs,
)
from service.errors import JobFailedError
from service.spec.resources import Page
from service.spec.sweep_results import Candidate, Trial, TrialStatus

sweep_app = typer.Typer(no_args_is_help=True, help="Find a data mix by many small runs before a large one.")

SweepFile = Annotated[Path, typer.Argument(help="A sweep's spec: YAML, TOML or JSON.")]
SweepId = Annotated[str, typer.Argument(help="As `sleddog sweep list` lists it.")]
StageName = Annotated[str | None, typer.Option("--stage", help="Only this stage's.")]


@sweep_app.command()
@clean_errors
def run(
    spec_file: SweepFile,
    train_best: Annotated[
        bool, typer.Option("--train-best", help="Then run the best mix's job, at full length.")
    ] = False,
    as_json: AsJson = False,
    url: Annotated[
        str | None,
        typer.Option(envvar="SLEDDOG_URL", help="A running service's address; else one is started, and stopped again."),
    ] = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run a sweep to its end, show its beams narrowing, and print what it found. Ctrl-C cancels it."""
    spec = load_sweep(spec_file)
    with local_service(data_dir, err) if url is None else connected(url, api_key, data_dir) as client:
        sweep = client.sweeps.create(spec)
        err.print(f"Posted {spec_file} as {sweep.id}", highlight=False)
        try:
            with cancelled_on_exit(sweep.cancel):
                _follow(client, sweep)
        except JobFailedError:
            if client.sweeps.find_results(sweep.id) is not None:
                _print_results(sweep, as_json=as_json)
            raise
        _print_results(sweep, as_json=as_json)
        if train_best:
            _train_best(client, sweep, as_json=as_json)


@sweep_app.command()
@clean_errors
def submit(
    spec_file: SweepFile,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end; Ctrl-C stops looking, not it.")] = False,
    priority: Priority = 0,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Post a sweep."""
    spec = load_sweep(spec_file)
    with connected(url, api_key, data_dir) as client:
        sweep = client.sweeps.create(spec, priority=priority)
        print_json(sweep) if as_json else out.print(sweep.id, highlight=False)
        if watch:
            _follow(client, sweep)


@sweep_app.command("list")
@clean_errors
def list_sweeps(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest sweeps to show.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List sweeps, newest first."""
    with connected(url, api_key, data_dir) as client:
        page = client.sweeps.list(limit=limit)
    print_json(page) if as_json else print_runs(page, describe_sweep)


@sweep_app.command()
@clean_errors
def show(
    sweep_id: SweepId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print what a sweep has found so far."""
    with connected(url, api_key, data_dir) as client:
        _print_results(client.sweeps.get(sweep_id), as_json=as_json)


@sweep_app.command()
@clean_errors
def cancel(
    sweep_id: SweepId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Cancel a sweep; finished trials stay."""
    with connected(url, api_key, data_dir) as client:
        sweep = client.sweeps.cancel(sweep_id)
    print_json(sweep) if as_json else out.print(sweep.status)


@sweep_app.command()
@clean_errors
def beams(
    sweep_id: SweepId,
    stage: StageName = None,
    all_candidates: Annotated[bool, typer.Option("--all", help="Every candidate, not only beams.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the leaderboard: of each stage the best mixes first."""
    with connected(url, api_key, data_dir) as client:
        if as_json:
            found = client.sweeps.beams(sweep_id, stage=stage, all_candidates=all_candidates)
            print_json(Page[Candidate](data=found, has_more=False))
            return
        results = client.sweeps.results(sweep_id)
    for shown in results.stages:
        if stage in (None, shown.name):
            out.print(leaderboard_table(results, shown, only_beams=not all_candidates))


@sweep_app.command()
@clean_errors
def trials(
    sweep_id: SweepId,
    stage: StageName = None,
    candidate: Annotated[str | None, typer.Option(help="Only this candidate's.")] = None,
    status: Annotated[TrialStatus | None, typer.Option(help="Only those that stand so.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List a sweep's training runs."""
    with connected(url, api_key, data_dir) as client:
        found = client.sweeps.trials(sweep_id, stage=stage, candidate=candidate, statuses=[status] if status else None)
    if as_json:
        print_json(Page[Trial](data=found, has_more=False))
        return
    table = Table("trial", "candidate", "stage", "seed", "status", "steps", "tokens", "seconds", "metrics")
    for trial in found:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(trial.metrics.items()))
        counts = (f"{trial.steps:,}", f"{trial.tokens:,}", f"{trial.duration_s:.1f}")
        names = (trial.id, trial.candidate, trial.stage, str(trial.seed), trial.status)
        table.add_row(*names, *counts, Text(trial.reason or metrics))
    out.print(table)


@sweep_app.command()
@clean_errors
def promote(
    sweep_id: SweepId,
    candidate: Annotated[str | None, typer.Argument(help="By default the best one.")] = None,
    submit_it: Annotated[bool, typer.Option("--submit", help="Post the job, and print its id instead.")] = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the job that trains a candidate's mix at full length, as JSON that `sleddog submit` takes."""
    with connected(url, api_key, data_dir) as client:
        sweep = client.sweeps.get(sweep_id)
        job = sweep.best().job if candidate is None else sweep.promote(candidate)
        if submit_it:
            out.print(client.jobs.create(job).id, highlight=False)
        else:
            print_json(job)


def _follow(client: Client, sweep: SweepHandle) -> None:
    with SweepView(err, client.sweeps.find_results) as view:
        client.sweeps.wait(sweep.id, on_update=view.update)


def _print_results(sweep: SweepHandle, *, as_json: bool) -> None:
    results = sweep.results()
    print_json(results) if as_json else print_sweep(results, out, sweep.run_url)


def _train_best(client: Client, sweep: SweepHandle, *, as_json: bool) -> None:
    best = sweep.best()
    job = client.jobs.create_from(best)
    err.print(f"Posted the job of {best.candidate.id} as {job.id}", highlight=False)
    with cancelled_on_exit(lambda: client.jobs.cancel(job.id)), ProgressView(err) as view:
        client.jobs.wait(job.id, on_update=view.update)
    if not as_json:
        print_report(client.jobs.report(job.id), out)
