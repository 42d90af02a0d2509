"""What the commands of `sleddog` share: options, how a service is found or started, how errors are shown."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.client.client import Client, is_loopback
from service.client.profile import find_connection
from service.client.runs import Runs
from service.errors import SleddogError
from service.settings import Settings
from service.spec.base import field_errors
from service.spec.resources import MAX_PRIORITY, MIN_PRIORITY, Page

out, err = Console(), Console(stderr=True)

Url = Annotated[
    str | None,
    typer.Option(envvar="SLEDDOG_URL", help="The service's address; by default the profile's, or this machine."),
]
Key = Annotated[
    str | None, typer.Option(envvar="SLEDDOG_API_KEY", help="By default the key that lies in the data directory.")
]
DataDir = Annotated[
    Path, typer.Option(envvar="SLEDDOG_DATA_DIR", help="Where the service keeps its store, its key and its runs.")
]
JobId = Annotated[str, typer.Argument(help="As `sleddog jobs` lists it.")]
RunId = Annotated[str, typer.Argument(help="Of a job or a sweep, as `sleddog jobs` or `sleddog sweep list` lists it.")]
Priority = Annotated[int, typer.Option(min=MIN_PRIORITY, max=MAX_PRIORITY, help="Higher goes first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

DEFAULT_DATA_DIR = Path(".sleddog")


def runs_of(client: Client, run_id: str) -> Runs[Any]:
    """Where a run of this id is to be asked for: among the sweeps, or the jobs."""
    return client.sweeps if run_id.startswith("sweep-") else client.jobs


def clean_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show an expected error as one clear line, and exit with 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (SleddogError, OSError) as error:
            _print_error(str(error))
            raise typer.Exit(1) from None
        except ValidationError as error:
            faults = field_errors([dict(item) for item in error.errors()], None)
            _print_error("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
            raise typer.Exit(1) from None
        except ModuleNotFoundError as error:
            _print_error(f"{error}; this command needs `pip install 'sleddog[server,cluster]'`")
            raise typer.Exit(1) from None

    return run


def _print_error(message: str) -> None:
    err.print(f"sleddog: {message}", style="red", highlight=False, markup=False, soft_wrap=True)


def print_json(model: Any) -> None:
    """Print an answer as JSON."""
    typer.echo(model.model_dump_json(indent=2))


def print_deleted(id: str, *, as_json: bool) -> None:
    """Say in JSON that a thing is gone; people see that the command has not failed."""
    if as_json:
        typer.echo(json.dumps({"id": id, "deleted": True}))


def print_runs(page: Page[Any], describe: Callable[[Any], str]) -> None:
    """A table of jobs or of sweeps.

    Args:
        page: of them.
        describe: how one stands, in a line.
    """
    table = Table("id", "name", "status", "created", "progress")
    for run in page.data:
        created = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        state = run.error.message if run.error else describe(run).strip()
        table.add_row(run.id, run.name, run.status, created, Text(state))
    out.print(table)


def print_line(model: Any) -> None:
    """Print an answer as one line of JSON, at once, so that another program can follow."""
    sys.stdout.write(model.model_dump_json() + "\n")
    sys.stdout.flush()


@contextmanager
def connected(url: str | None, api_key: str | None, data_dir: Path) -> Iterator[Client]:
    """A client; the key in the data directory is this machine's service's, and is shown to no other."""
    connection = find_connection(url, api_key)
    key_path = Settings(data_dir).api_key_path
    if connection.api_key is None and is_loopback(connection.url) and key_path.exists():
        connection = replace(connection, api_key=key_path.read_text())
    with Client(connection.url, connection.api_key) as client:
        yield client


@contextmanager
def local_service(data_dir: Path, console: Console) -> Iterator[Client]:
    """A client of a service, and a local Ray cluster, that live for the block."""
    from service.serve import ensure_first_key, served

    settings = Settings(data_dir)
    ensure_first_key(settings)
    exit_on_signals()
    console.print("Starting the service and a local Ray cluster …")
    with served(settings) as url, connected(url, None, data_dir) as client:
        yield client


@contextmanager
def cancelled_on_exit(cancel: Callable[[], object]) -> Iterator[None]:
    """Cancel what is waited for when the waiting is broken off."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        cancel()
        err.print("cancelled")
        raise typer.Exit(130) from None


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP an ordinary exit, on whose way all that was started is stopped."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, leave)
