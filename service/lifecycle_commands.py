"""`sleddog retry`, `resume` and `delete`: what becomes of a job that has ended."""

from __future__ import annotations

from typing import Annotated

import typer

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
    print_deleted,
    print_json,
    runs_of,
)
from service.follow_commands import follow

lifecycle_app = typer.Typer()

Watch = Annotated[bool, typer.Option("--watch", help="Follow it to its end.")]


@lifecycle_app.command()
@clean_errors
def retry(
    job_id: JobId,
    watch_it: Watch = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Post a job again that has ended: a new one of the same spec, from the beginning."""
    with connected(url, api_key, data_dir) as client:
        job = client.jobs.retry(job_id)
        print_json(job) if as_json else out.print(job.id, highlight=False)
        if watch_it:
            follow(client, job.id, out, as_json=as_json)


@lifecycle_app.command()
@clean_errors
def resume(
    run_id: RunId,
    watch_it: Watch = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Go on with a cancelled or failed job or sweep, from its last checkpoint."""
    with connected(url, api_key, data_dir) as client:
        runs = runs_of(client, run_id)
        run = runs.resume(run_id)
        print_json(run) if as_json else out.print(run.status, highlight=False)
        if watch_it and run.kind == "job":
            follow(client, run.id, out, as_json=as_json)
        elif watch_it:
            client.sweeps.wait(run.id, progress=not as_json)


@lifecycle_app.command()
@clean_errors
def delete(
    run_id: RunId,
    purge: Annotated[bool, typer.Option("--purge", help="Also delete its checkpoints, export and reports.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Forget a job or a sweep that has ended."""
    with connected(url, api_key, data_dir) as client:
        runs_of(client, run_id).delete(run_id, purge=purge)
    print_deleted(run_id, as_json=as_json)
