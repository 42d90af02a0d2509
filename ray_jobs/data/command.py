"""Preparing data, and looking at it, without a service: what `sleddog data …` runs.

`python -m ray_jobs.data.command` is a process of its own, because the light client has neither Ray nor tokenizers.
What a person reads of progress and faults goes to standard error. It ends with 0 when all is done, with 2 when the
input is at fault, and with 1 otherwise.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from service.errors import SleddogError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Directory = Annotated[str, typer.Argument(metavar="DIR", help="What `prepare` wrote to, or one `packed-…` in it.")]

_INPUT_FAULTS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


@app.callback()
def main() -> None:
    """Prepare data and look at it, without a service."""


def _clean_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show an expected error as one clear line, and exit with 2 if the input is at fault, else with 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except SleddogError as error:
            _fail(str(error), 2 if error.fault in ("user", "data") else 1)
        except OSError as error:
            _fail(str(error), 2 if isinstance(error, _INPUT_FAULTS) else 1)

    return run


def _fail(message: str, code: int) -> None:
    console = Console(stderr=True)
    console.print(f"sleddog: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)


@app.command()
@_clean_errors
def prepare(
    spec_file: Annotated[
        typer.FileText, typer.Argument(metavar="SPEC.json", help="A job's spec; - reads it from stdin.")
    ],
    output: Annotated[str, typer.Option(help="Directory for prepared data, kept from run to run.")],
) -> None:
    """Prepare a job's data; prints where it lies, and its manifest, as JSON.

    Runs on the cluster of RAY_ADDRESS, or on one that is started for it.
    """
    from ray_jobs.data.prepare import prepare as prepare_data
    from ray_jobs.data.progress_lines import ProgressLines
    from service.spec.job import JobSpec

    spec, url = JobSpec.model_validate_json(spec_file.read()), _absolute(output)
    with _ray(), _removed_on_fault(url), ProgressLines(Console(stderr=True)) as progress:
        prepared = prepare_data(spec, url, progress)
    typer.echo(json.dumps({"url": prepared.url, "reused": prepared.reused, "manifest": prepared.manifest}))


@contextmanager
def _ray() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    address = os.environ.get("RAY_ADDRESS", "local")
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _removed_on_fault(url: str) -> Iterator[None]:
    """Remove the directory if the input turns out bad, unless something was in it before.

    What an interrupted run leaves is kept: the next one goes on from there.
    """
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    if filesystem.exists(path) and not filesystem.isdir(path):
        raise NotADirectoryError(f"{url} is no directory")
    is_ours = not (filesystem.exists(path) and filesystem.ls(path))
    try:
        yield
    except SleddogError as error:
        if is_ours and error.fault in ("user", "data") and filesystem.exists(path):
            filesystem.rm(path, recursive=True)
        raise


@app.command()
@_clean_errors
def inspect(
    directory: Directory,
    row: Annotated[int, typer.Option(help="Number of the row, from 0.")] = 0,
    split: Annotated[Literal["train", "held_out"], typer.Option(help="Which rows.")] = "train",
) -> None:
    """Print a packed row decoded: trained tokens coloured, documents and their categories told apart.

    Where there are no colours, trained tokens stand between ⟦ and ⟧.
    """
    from ray_jobs.data.row_view import show_row

    show_row(_absolute(directory), split, row, Console(highlight=False))


@app.command()
@_clean_errors
def preview(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Raw rows; a path, a URL, or a glob of either.")],
    *,
    form: Annotated[str, typer.Option(help="messages, prompt_completion, alpaca, sharegpt, or a mapping as JSON.")],
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR", help="Of a Hugging Face tokenizer.")] = None,
    train_bpe: Annotated[bool, typer.Option("--train-bpe", help="Train a tokenizer on the file instead.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show, from the first.")] = 5,
    format: Annotated[str | None, typer.Option(help="jsonl, json, csv, tsv, parquet; default: by its name.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System turn of rows that have none.")] = None,
) -> None:
    """Print raw rows as they would be trained on, trained tokens marked, or why they would be rejected."""
    from ray_jobs.data.preview import preview_source, show_rows
    from service.spec.model import ModelSpec

    if (tokenizer is None) == (not train_bpe):
        raise typer.BadParameter("give either --tokenizer or --train-bpe")
    source = preview_source({"uri": _absolute(file), "form": form, "format": format, "system_prompt": system_prompt})
    given = {"kind": "pretrained", "path": _absolute(tokenizer)} if tokenizer else {"kind": "train_bpe"}
    model = ModelSpec.model_validate({"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": given})
    show_rows(source, model, rows, Console(highlight=False))


@app.command()
@_clean_errors
def report(
    directory: Directory,
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="File to write.")],
) -> None:
    """Write one HTML page on prepared data: lengths, mix, duplicates, fill. It loads nothing from anywhere."""
    from ray_jobs.data.packed_directory import find_packed
    from ray_jobs.data.report_page import page
    from ray_jobs.run_directory import write_file

    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"no such directory: {output.resolve().parent}")
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a directory")
    content = page(find_packed(_absolute(directory)))
    write_file(str(output.resolve()), content.encode())
    typer.echo(str(output))


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    app(prog_name="sleddog data")
