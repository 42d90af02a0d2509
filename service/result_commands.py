"""`sleddog checkpoints`, `evaluations`, `artifacts`, `download`, `diff`, `reproduce`, `presets`: what came of jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

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
    err,
    out,
    print_json,
    runs_of,
)
from service.errors import NotFoundError
from service.spec.outcomes import Difference, JobDiff

result_app = typer.Typer()


def print_list(models: Sequence[BaseModel]) -> None:
    """Print answers as a JSON list."""
    typer.echo(json.dumps([model.model_dump(mode="json") for model in models], indent=2))


@result_app.command()
@clean_errors
def checkpoints(
    job_id: JobId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List a job's training checkpoints, the furthest first."""
    with connected(url, api_key, data_dir) as client:
        found = client.jobs.checkpoints(job_id)
    if as_json:
        print_list(found)
        return
    table = Table("step", "attempt", "bytes", "shards", "saved", "path")
    for item in found:
        saved = item.saved_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if item.saved_at else ""
        table.add_row(str(item.step), str(item.attempt), f"{item.num_bytes:,}", str(item.num_shards), saved, item.path)
    out.print(table)


@result_app.command()
@clean_errors
def evaluations(
    job_id: JobId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print what was evaluated so far: held-out losses and benchmarks, by time."""
    with connected(url, api_key, data_dir) as client:
        found = client.jobs.evaluations(job_id)
    if as_json:
        print_list(found)
        return
    table = Table("when", "step", "what", "value")
    for item in found:
        for category, loss in sorted(item.held_out_loss.items()):
            table.add_row(item.when, str(item.step), f"held-out loss, {category}", f"{loss:.4f}")
        for task in item.tasks:
            for name, metric in task.metrics.items():
                score = metric["score"] if isinstance(metric, dict) else metric
                table.add_row(item.when, str(item.step), f"{task.task} {name}", f"{score:.4f}")
            if task.status == "failed":
                table.add_row(item.when, str(item.step), task.task, Text(f"failed: {task.reason}"))
    out.print(table)


@result_app.command()
@clean_errors
def artifacts(
    run_id: RunId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List the files that a job or a sweep has left."""
    with connected(url, api_key, data_dir) as client:
        found = list(runs_of(client, run_id).artifacts(run_id))
    if as_json:
        print_list(found)
        return
    table = Table("path", "bytes")
    for item in found:
        table.add_row(Text(item.path), f"{item.num_bytes:,}")
    out.print(table)


@result_app.command()
@clean_errors
def download(
    run_id: RunId,
    path: Annotated[str, typer.Argument(help="A file, or a folder of them, as `sleddog artifacts` lists it.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(),
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Fetch what a job or a sweep has left; a lost connection is taken up again where it broke off."""
    folder = path.rstrip("/")
    with connected(url, api_key, data_dir) as client:
        runs = runs_of(client, run_id)
        everything = [item.path for item in runs.artifacts(run_id)]
        wanted = [name for name in everything if not folder or name == folder or name.startswith(f"{folder}/")]
        if not wanted:
            raise NotFoundError(f"{run_id} has left no {path!r}")
        written: list[str] = []
        for name in wanted:
            written.append(str(runs.download(run_id, name, output / name)))
            err.print(written[-1], highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(written, indent=2))


@result_app.command()
@clean_errors
def diff(
    left: JobId,
    right: Annotated[str, typer.Argument(help="The other job.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Tell how two jobs differ: spec, data, results."""
    with connected(url, api_key, data_dir) as client:
        found = client.jobs.diff(left, right)
    print_json(found) if as_json else _print_diff(found)


@result_app.command()
@clean_errors
def reproduce(
    job_id: JobId,
    submit_it: Annotated[bool, typer.Option("--submit", help="Post the job, and print its id instead.")] = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the job that does again what a job did, as JSON that `sleddog submit` takes; and what differs."""
    with connected(url, api_key, data_dir) as client:
        found = client.jobs.reproduce(job_id)
        for difference in found.differences:
            err.print(f"differs: {difference}", highlight=False, markup=False, soft_wrap=True)
        if submit_it:
            out.print(client.jobs.create(found.spec).id, highlight=False)
        else:
            print_json(found.spec)


@result_app.command()
@clean_errors
def presets(
    as_json: AsJson = False, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """List the architectures that a job can start from by name."""
    with connected(url, api_key, data_dir) as client:
        found = client.presets()
    if as_json:
        print_list(found)
        return
    table = Table("name", "parameters", "active", "layers", "width", "experts", "of them chosen")
    for item in found:
        sizes = (item.config[name] for name in ("num_layers", "hidden_size", "num_experts", "top_k"))
        table.add_row(item.name, f"{item.num_params:,}", f"{item.num_active_params:,}", *map(str, sizes))
    out.print(table)


def _print_diff(found: JobDiff) -> None:
    for note in found.notes:
        err.print(note, highlight=False, markup=False)
    table = Table("", "path", found.left, found.right, "change")
    for part, items in (("spec", found.spec), ("data", found.data), ("results", found.results)):
        for item in items:
            table.add_row(part, item.path, *_cells(item))
    out.print(table)


def _cells(item: Difference) -> tuple[Text, Text, str]:
    change = "" if item.change is None else f"{item.change:+.5g}"
    return Text(_short(item.left)), Text(_short(item.right)), change


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
