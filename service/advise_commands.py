"""`sleddog advise …`: what short jobs tell before a long one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client.freeze_advice import MODES, STEPS_NOT_TIMED, advise_freeze
from service.client.freeze_view import print_advice
from service.client.progress_view import ProgressView
from service.client.spec_file import load_spec
from service.command_line import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Key,
    Url,
    clean_errors,
    connected,
    err,
    exit_on_signals,
    out,
    print_json,
)

advise_app = typer.Typer(no_args_is_help=True, help="Try a job out in short runs, and tell what follows from them.")


@advise_app.callback()
def _advise() -> None:
    """Commands have names, though there is only one."""


@advise_app.command()
@clean_errors
def freeze(
    spec_file: Annotated[Path, typer.Argument(help="A job's spec: YAML, TOML or JSON.")],
    steps: Annotated[int, typer.Option(min=STEPS_NOT_TIMED + 1, help="Optimiser steps of each mode.")] = 50,
    modes: Annotated[
        str, typer.Option(help="Modes beside full tuning, which is always run; with commas between them.")
    ] = ",".join(MODES[1:]),
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Compare full, frozen-MoE and router-only tuning of a job by short runs, one after the other: memory, time, loss.

    Ctrl-C cancels the run under way; the same command again goes on with what is missing.
    """
    spec = load_spec(spec_file)
    exit_on_signals()
    with connected(url, api_key, data_dir) as client, ProgressView(err) as view:
        try:
            advice = advise_freeze(client, spec, steps=steps, modes=modes.split(","), on_update=view.update)
        except (KeyboardInterrupt, SystemExit):
            err.print("cancelled; the same command again goes on with what is missing")
            raise typer.Exit(130) from None
    print_json(advice) if as_json else print_advice(advice, out)
