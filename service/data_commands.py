"""`sleddog data …`: preparing data, and looking at it, without a service.

The work is done by `ray_jobs.data.command` in a process of its own: this package is light and imports no cluster code.
The process gets the arguments as they are, and the signals that come; its exit code is the command's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from service.client.report_view import print_data
from service.client.spec_file import load_spec
from service.errors import SleddogError

DATA_MODULE = "ray_jobs.data.command"
_NEEDED = ("fsspec", "numpy", "pyarrow", "ray", "tokenizers", "transformers")
"""Of the `cluster` extra, what data is prepared with."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

data_app = typer.Typer(no_args_is_help=True, help="Prepare data and look at it, without a service.")
out, err = Console(), Console(stderr=True)


@data_app.command()
def prepare(
    spec_file: Annotated[Path, typer.Argument(help="A job's spec: YAML, TOML or JSON.")],
    output: Annotated[str, typer.Option(help="Directory for prepared data, kept from run to run.")],
) -> None:
    """Prepare a job's data as the job would, and report: on the cluster of RAY_ADDRESS, or one started for it."""
    try:
        spec = load_spec(spec_file)
    except (SleddogError, OSError) as error:
        raise _failed(str(error), 2) from None
    answer = _run(["prepare", "-", "--output", output], spec.model_dump_json())
    prepared = json.loads(answer)
    print_data(prepared["manifest"], out)
    reused = ", prepared before" if prepared["reused"] else ""
    out.print(f"\n[bold]Prepared data[/bold]{reused}", highlight=False)
    out.print(prepared["url"], highlight=False, markup=False, soft_wrap=True)


@data_app.command(context_settings=_PASSED_ON)
def inspect(context: typer.Context) -> None:
    """Print a packed row decoded, its trained tokens and documents marked."""
    _run(["inspect", *context.args])


@data_app.command(context_settings=_PASSED_ON)
def preview(context: typer.Context) -> None:
    """Print raw rows as they would be trained on, or why they would be rejected."""
    _run(["preview", *context.args])


@data_app.command(context_settings=_PASSED_ON)
def report(context: typer.Context) -> None:
    """Write an HTML page on prepared data: lengths, mix, duplicates, fill."""
    _run(["report", *context.args])


def _failed(message: str, code: int) -> typer.Exit:
    err.print(f"sleddog: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(code)


def _run(arguments: Sequence[str], stdin: str | None = None) -> str:
    """Run the data command to its end.

    Args:
        arguments: of it.
        stdin: what it reads; then what it prints is not shown but returned.

    Raises:
        typer.Exit: it did not end well, or cannot be started.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise _failed(f"no {', '.join(missing)} here; this command needs `pip install 'sleddog[cluster]'`", 1)
    pipe = None if stdin is None else subprocess.PIPE
    command = [sys.executable, "-m", DATA_MODULE, *arguments]
    # a session of its own: Ctrl-C in a terminal would otherwise reach it twice, once from there and once from here
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process,  # noqa: S603  our own command line
        _passed_on_to(process.send_signal),
    ):
        answer, _ = process.communicate(stdin)
    if process.returncode:
        raise typer.Exit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return answer or ""


@contextmanager
def _passed_on_to(send: Callable[[int], None]) -> Iterator[None]:
    """Hand on the signals that this process gets, but for those it was told to ignore, as under nohup."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        send(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])
