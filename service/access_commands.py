"""`sleddog me`, `sleddog keys`, `sleddog projects`, `sleddog users` and `sleddog audit`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from service.command_line import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Key,
    Url,
    clean_errors,
    connected,
    out,
    print_json,
)
from service.spec.access import ApiKey, CreatedKey, NewKey, NewProject, NewUser, Role, Scope

access_app = typer.Typer()
keys_app = typer.Typer(no_args_is_help=True, help="API keys to the project of the key that is used.")
projects_app = typer.Typer(no_args_is_help=True, help="Projects, whose members see each other's jobs and no others'.")
users_app = typer.Typer(no_args_is_help=True, help="Members of the project of the key that is used.")
access_app.add_typer(keys_app, name="keys")
access_app.add_typer(projects_app, name="projects")
access_app.add_typer(users_app, name="users")


class ScopeName(StrEnum):
    """As `Scope`: typer takes no list of literals."""

    read = "read"
    write = "write"
    admin = "admin"


DEFAULT_SCOPES: tuple[Scope, ...] = ("read", "write")

KeyId = Annotated[str, typer.Argument(help="As `sleddog keys list` tells it; the middle of the key's text.")]
UserId = Annotated[str, typer.Argument(help="A name or an e-mail address.")]
RoleOption = Annotated[Role, typer.Option(help="What the user may do.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Lines to show.")]


@access_app.command()
@clean_errors
def me(as_json: AsJson = False, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Tell whose the key is, and what it may do."""
    with connected(url, api_key, data_dir) as client:
        found = client.me()
    if as_json:
        print_json(found)
    else:
        scopes = ", ".join(found.scopes)
        out.print(f"{found.user}, {found.role} of project {found.project}, by key {found.key_id} ({scopes})")


@access_app.command()
@clean_errors
def audit(
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List writes and refused accesses, newest first."""
    with connected(url, api_key, data_dir) as client:
        page = client.audit(limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [
        (_when(item.time), item.user or "", item.address, item.action, item.target, item.code or item.outcome)
        for item in page.data
    ]
    _print_table(("time", "user", "from", "action", "target", "outcome"), rows)


@keys_app.command("create")
@clean_errors
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    user: Annotated[str | None, typer.Option(help="Whose; by default yours.")] = None,
    scope: Annotated[
        list[ScopeName] | None, typer.Option(help="read, write, admin; by default read and write.")
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.01, help="By default it does not expire.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make an API key. It is shown this once."""
    scopes: tuple[Scope, ...] = tuple(name.value for name in scope or ()) or DEFAULT_SCOPES
    new = NewKey(name=name, user=user, scopes=scopes, expires_in_days=expires_in_days)
    with connected(url, api_key, data_dir) as client:
        _print_secret(client.keys.create(new), as_json=as_json)


@keys_app.command("list")
@clean_errors
def list_keys(
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List keys, newest first, also those that no longer work."""
    with connected(url, api_key, data_dir) as client:
        page = client.keys.list(limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [
        (key.id, key.name, key.user, ", ".join(key.scopes), _when(key.last_used_at), _end(key)) for key in page.data
    ]
    _print_table(("id", "name", "user", "scopes", "last used", "ends"), rows)


@keys_app.command("rotate")
@clean_errors
def rotate_key(
    key_id: KeyId,
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="Hours for which the old key works.")] = 24.0,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a key in the place of another. It is shown this once."""
    with connected(url, api_key, data_dir) as client:
        _print_secret(client.keys.rotate(key_id, overlap_s=overlap_hours * 3600), as_json=as_json)


@keys_app.command("revoke")
@clean_errors
def revoke_key(key_id: KeyId, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Refuse a key from now on."""
    with connected(url, api_key, data_dir) as client:
        client.keys.revoke(key_id)
    out.print("revoked")


@projects_app.command("create")
@clean_errors
def create_project(
    project_id: Annotated[str, typer.Argument(help="Its name, for good: lower case, digits, dashes.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a project, and a key to it with all scopes. It is shown this once."""
    with connected(url, api_key, data_dir) as client:
        project = client.projects.create(NewProject(id=project_id))
    if as_json:
        print_json(project)
    elif project.first_key is not None:
        _print_secret(project.first_key, as_json=False)


@projects_app.command("list")
@clean_errors
def list_projects(
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List projects that the key's user sees."""
    with connected(url, api_key, data_dir) as client:
        page = client.projects.list(limit=limit)
    rows = [(project.id, _when(project.created_at)) for project in page.data]
    print_json(page) if as_json else _print_table(("id", "created"), rows)


@users_app.command("create")
@clean_errors
def create_user(
    user_id: UserId,
    role: RoleOption = "member",
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Take a user into the project."""
    with connected(url, api_key, data_dir) as client:
        user = client.users.create(NewUser(id=user_id, role=role))
    print_json(user) if as_json else out.print(f"{user.id} is a {user.role} now", highlight=False)


@users_app.command("list")
@clean_errors
def list_users(
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """List the project's members."""
    with connected(url, api_key, data_dir) as client:
        page = client.users.list(limit=limit)
    rows = [(user.id, user.role, _when(user.created_at)) for user in page.data]
    print_json(page) if as_json else _print_table(("id", "role", "since"), rows)


@users_app.command("set-role")
@clean_errors
def set_role(
    user_id: UserId, role: RoleOption, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Give a member another role."""
    with connected(url, api_key, data_dir) as client:
        user = client.users.change_role(user_id, role)
    out.print(f"{user.id} is a {user.role} now", highlight=False)


@users_app.command("remove")
@clean_errors
def remove_user(user_id: UserId, url: Url = None, api_key: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Remove a member, and revoke their keys to the project."""
    with connected(url, api_key, data_dir) as client:
        client.users.remove(user_id)
    out.print("removed")


def _print_secret(key: CreatedKey, *, as_json: bool) -> None:
    """The key alone on its line, so that a script can take it."""
    print_json(key) if as_json else out.print(key.secret or key.id, highlight=False, soft_wrap=True)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _end(key: ApiKey) -> str:
    return "revoked" if key.revoked_at else _when(key.expires_at)


def _when(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M")
