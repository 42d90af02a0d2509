"""`sleddog webhook …`: who is told what happens."""

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
from service.result_commands import print_list
from service.spec.webhook import WEBHOOK_EVENT_TYPES, Webhook

webhook_app = typer.Typer(no_args_is_help=True, help="Have other services told what happens, by signed messages.")

WebhookId = Annotated[str, typer.Argument(help="As `sleddog webhook list` lists it.")]


@webhook_app.command()
@clean_errors
def create(
    receiver: Annotated[str, typer.Argument(help="URL that messages are posted to.")],
    event: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated; by default jobs that have ended. Types: {', '.join(WEBHOOK_EVENT_TYPES)}."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have messages sent to a URL; prints the secret that they are signed with, this once."""
    with connected(url, api_key, data_dir) as client:
        try:
            webhook = client.webhooks.create(receiver, event or None, description=description)
        except ValidationError as error:
            raise InvalidSpecError(str(error.errors()[0]["msg"]), "event") from None
    if as_json:
        print_json(webhook)
        return
    out.print(webhook.id, highlight=False)
    err.print(f"secret, shown this once: {webhook.secret}", highlight=False, soft_wrap=True)


@webhook_app.command("list")
@clean_errors
def list_webhooks(
    as_json: AsJson = False, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """List the project's webhooks."""
    with connected(url, api_key, data_dir) as client:
        found = client.webhooks.list()
    if as_json:
        print_list(found)
        return
    table = Table("id", "url", "events", "state")
    for webhook in found:
        table.add_row(webhook.id, Text(webhook.url), ", ".join(webhook.events), Text(_state(webhook)))
    out.print(table)


@webhook_app.command()
@clean_errors
def delete(
    webhook_id: WebhookId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send no more messages to a receiver."""
    with connected(url, api_key, data_dir) as client:
        client.webhooks.delete(webhook_id)
    print_deleted(webhook_id, as_json=as_json)


@webhook_app.command("test")
@clean_errors
def send_test(
    webhook_id: WebhookId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send a message of type `webhook.test`; `sleddog webhook deliveries` tells what became of it."""
    with connected(url, api_key, data_dir) as client:
        delivery = client.webhooks.test(webhook_id)
    print_json(delivery) if as_json else out.print(delivery.id, highlight=False)


@webhook_app.command()
@clean_errors
def enable(
    webhook_id: WebhookId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send again to a receiver that was given up, what is pending too."""
    with connected(url, api_key, data_dir) as client:
        webhook = client.webhooks.enable(webhook_id)
    print_json(webhook) if as_json else out.print(_state(webhook), highlight=False)


@webhook_app.command()
@clean_errors
def deliveries(
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest messages to show.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List the messages to a receiver, newest first."""
    with connected(url, api_key, data_dir) as client:
        page = client.webhooks.deliveries(webhook_id, limit=limit)
    if as_json:
        print_json(page)
        return
    table = Table("id", "type", "status", "tries", "created", "last answer")
    for item in page.data:
        created = item.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        answer = item.last_error or ("" if item.last_status is None else f"HTTP {item.last_status}")
        table.add_row(item.id, item.type, item.status, str(item.attempts), created, Text(answer))
    out.print(table)


def _state(webhook: Webhook) -> str:
    if webhook.disabled_at is not None:
        return f"disabled: {webhook.disabled_reason}"
    return "works" if webhook.failing_since is None else f"takes nothing since {webhook.failing_since:%Y-%m-%d %H:%M}"
