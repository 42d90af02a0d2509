"""`sleddog queue`, `update`, `approve` and `quotas`: what waits, why, and who may how much."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError
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
    out,
    print_json,
    runs_of,
)
from service.errors import InvalidSpecError
from service.spec.access import Quotas
from service.spec.queue import QueueEntry
from service.spec.resources import MAX_PRIORITY, MIN_PRIORITY

queue_app = typer.Typer()


@queue_app.command()
@clean_errors
def queue(as_json: AsJson = False, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show what runs and what waits of the project, in the order in which it starts, and why."""
    with connected(url, api_key, data_dir) as client:
        found = client.queue()
    if as_json:
        print_json(found)
        return
    table = Table("", "id", "name", "status", "priority", "GPU hours", "starts in", "waits for")
    for entry in (*found.running, *found.waiting):
        table.add_row(*_row(entry))
    out.print(table)


def _row(entry: QueueEntry) -> tuple[str | Text, ...]:
    position = "" if entry.queue_position is None else str(entry.queue_position)
    eta = "" if entry.queue_eta_s is None else f"{entry.queue_eta_s / 60:.0f} min"
    hours = f"{entry.gpu_seconds / 3600:.2f}"
    reason = Text(entry.queue_reason or "")
    return position, entry.id, entry.name, entry.status, str(entry.priority), hours, eta, reason


@queue_app.command()
@clean_errors
def update(
    run_id: RunId,
    priority: Annotated[
        int, typer.Option("--priority", min=MIN_PRIORITY, max=MAX_PRIORITY, help="Higher goes first; by default 0.")
    ],
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Change the priority of a job or a sweep that waits."""
    with connected(url, api_key, data_dir) as client:
        run = runs_of(client, run_id).update(run_id, priority=priority)
    print_json(run) if as_json else out.print(f"priority {run.priority}", highlight=False)


@queue_app.command()
@clean_errors
def approve(run_id: JobId, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Let a job or a sweep into the queue whose plan is above the project's limit; for admins."""
    with connected(url, api_key, data_dir) as client:
        status = (
            client.sweeps.approve(run_id).status if run_id.startswith("sweep-") else client.jobs.approve(run_id).status
        )
    out.print(status)


@queue_app.command()
@clean_errors
def quotas(
    project: Annotated[str, typer.Argument(help="The project's name.")] = "default",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Such as max_gpus=16, or max_gpus=none; may be repeated.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show what a project may use, or change it; admins of the default project change."""
    with connected(url, api_key, data_dir) as client:
        found = client.project(project).quotas
        if change:
            found = client.change_quotas(project, _changed(found, change)).quotas
    if as_json:
        print_json(found)
        return
    table = Table("quota", "value")
    for name, value in found.model_dump().items():
        table.add_row(name, "no limit" if value is None else f"{value:g}")
    out.print(table)


def _changed(before: Quotas, changes: list[str]) -> Quotas:
    document = before.model_dump()
    for change in changes:
        name, _, value = change.partition("=")
        document[name] = None if value in ("", "none") else value
    try:
        return Quotas.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InvalidSpecError(str(fault["msg"]), ".".join(map(str, fault["loc"]))) from None
