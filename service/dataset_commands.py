"""`sleddog datasets …`: files of rows that are uploaded to the service, and what it says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from service.client.dataset_view import datasets_table, print_preview, print_statistics, print_validation
from service.client.upload import Progress as OnProgress
from service.command_line import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Key,
    Url,
    clean_errors,
    connected,
    err,
    out,
    print_deleted,
    print_json,
)
from service.errors import InvalidSpecError

datasets_app = typer.Typer(no_args_is_help=True, help="Upload files of rows, and look at them before training.")

DatasetId = Annotated[str, typer.Argument(help="As `sleddog datasets list` lists it.")]
Form = Annotated[
    str,
    typer.Option(help="How a row holds its conversation: a common form's name, or a mapping as JSON, as in a source."),
]


@datasets_app.command()
@clean_errors
def upload(
    path: Annotated[Path, typer.Argument(help="JSONL, JSON, CSV, TSV or Parquet; plain or .gz, .bz2, .xz, .zst.")],
    name: Annotated[str | None, typer.Option(help="That it gets; by default the file's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Upload a file, in parallel parts. The same command again goes on where it was broken off."""
    with connected(url, api_key, data_dir) as client, _progress(path.name) as on_progress:
        dataset = client.datasets.upload(path, name=name, progress=on_progress)
    print_json(dataset) if as_json else out.print(dataset.uri, highlight=False)


@datasets_app.command("list")
@clean_errors
def list_datasets(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest datasets to show.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List datasets, newest first."""
    with connected(url, api_key, data_dir) as client:
        page = client.datasets.list(limit=limit)
    print_json(page) if as_json else out.print(datasets_table(page.data))


@datasets_app.command()
@clean_errors
def validate(
    dataset_id: DatasetId,
    form: Form = "messages",
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Look at every row as a job would; exits with 1 when one would be rejected."""
    with connected(url, api_key, data_dir) as client:
        found = client.datasets.validate(dataset_id, form=_form(form))
    print_json(found) if as_json else print_validation(found, out)
    if not found.is_valid:
        raise typer.Exit(1)


@datasets_app.command()
@clean_errors
def preview(
    dataset_id: DatasetId,
    form: Form = "messages",
    start: Annotated[int, typer.Option(min=1, help="First row to show.")] = 1,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Rows at most.")] = 5,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print rows as they would be trained on, what is trained marked, or why they would be rejected."""
    with connected(url, api_key, data_dir) as client:
        found = client.datasets.preview(dataset_id, form=_form(form), start=start, limit=limit)
    print_json(found) if as_json else print_preview(found, out)


@datasets_app.command()
@clean_errors
def stats(
    dataset_id: DatasetId,
    form: Form = "messages",
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Count rows, turns, characters and copies, and show the lengths."""
    with connected(url, api_key, data_dir) as client:
        found = client.datasets.statistics(dataset_id, form=_form(form))
    print_json(found) if as_json else print_statistics(found, out)


@datasets_app.command()
@clean_errors
def delete(
    dataset_id: DatasetId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Take a dataset away; refused while a job that reads it has not ended."""
    with connected(url, api_key, data_dir) as client:
        client.datasets.delete(dataset_id)
    print_deleted(dataset_id, as_json=as_json)


def _form(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidSpecError(f"neither a form's name nor JSON: {error}", "form") from None


@contextmanager
def _progress(name: str) -> Iterator[OnProgress | None]:
    """A bar in a terminal, and nothing elsewhere."""
    if not err.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bars:
        bar = bars.add_task(name)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
