from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.client import access
from service.client.client import AsyncClient, Client
from service.errors import NotAuthenticatedError, NotAuthorizedError
from service.spec.access import NewKey, NewProject, NewUser


def run(*arguments: str, url: str, key: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", url, "--api-key", key])


@pytest.mark.usefixtures("apart")
def test_keys_are_handed_out_rotated_and_revoked_from_the_command_line(url: str, key: str) -> None:
    def ask(*arguments: str, key: str = key) -> str:
        result = run(*arguments, url=url, key=key)
        assert result.exit_code == 0, result.output
        return result.output.strip()

    assert ask("me").startswith("admin, admin of project default, by key ")
    assert ask("users", "create", "ada", "--role", "viewer") == "ada is a viewer now"
    theirs = ask("keys", "create", "notebook", "--user", "ada", "--scope", "read", "--expires-in-days", "30")
    assert json.loads(ask("me", "--json", key=theirs))["scopes"] == ["read"]
    refused = run("keys", "list", url=url, key=theirs)
    assert (refused.exit_code, "this needs the role admin" in refused.stderr) == (1, True)
    listed = json.loads(ask("keys", "list", "--json"))["data"]
    assert [item["name"] for item in listed] == ["notebook", "first key"]
    rotated = ask("keys", "rotate", listed[0]["id"], "--overlap-hours", "1")
    assert rotated != theirs
    assert ask("keys", "revoke", listed[0]["id"]) == "revoked"
    assert "revoked" in ask("keys", "list")
    assert run("me", url=url, key=theirs).exit_code == 1
    wrong = run("users", "create", "no spaces, please", url=url, key=key)
    assert (wrong.exit_code, wrong.stderr.startswith("sleddog: id: ")) == (1, True)
    assert ask("users", "set-role", "ada", "--role", "member") == "ada is a member now"
    assert ask("me", key=rotated).startswith("ada, member of project default")
    elsewhere = ask("projects", "create", "elsewhere")
    assert "project elsewhere" in ask("me", key=elsewhere)
    assert "elsewhere" in ask("projects", "list")
    assert ask("users", "remove", "ada") == "removed"
    assert "ada" not in ask("users", "list")
    assert "revoke_key" in ask("audit")


def test_the_client_hands_out_keys(client: Client, url: str) -> None:
    assert client.me().user == "admin"
    client.users.create(NewUser(id="ada"))
    theirs = client.keys.create(NewKey(name="ci", user="ada"))
    with Client(url, theirs.secret) as other:
        assert other.me().role == "member"
        with pytest.raises(NotAuthorizedError, match="needs the role admin"):
            other.keys.list()
    assert client.keys.list().data[0].last_used_at is not None
    client.keys.revoke(theirs.id)
    with Client(url, theirs.secret) as other, pytest.raises(NotAuthenticatedError, match="was revoked"):
        other.me()
    assert [entry.action for entry in client.audit(limit=1).data] == ["get_me"]


def test_the_awaited_client_hands_out_keys(url: str, key: str) -> None:
    async def use() -> list[str]:
        async with AsyncClient(url, key) as client:
            project = await client.projects.create(NewProject(id="elsewhere"))
            await client.users.create(NewUser(id="ada"))
            await client.users.change_role("ada", "viewer")
            made = await client.keys.create(NewKey(name="ci", user="ada"))
            await client.keys.rotate(made.id)
            await client.keys.revoke(made.id)
            await client.users.remove("ada")
            assert project.first_key is not None
            keys = await client.keys.list()
            found = [key.id for key in keys.data if key.revoked_at is None]
            projects = [item.id for item in (await client.projects.list()).data]
            users = [item.id for item in (await client.users.list()).data]
            assert found == [(await client.me()).key_id], "only mine is left"
            return [*projects, *users]

    assert asyncio.run(use()) == ["default", "elsewhere", "admin"]


@pytest.mark.parametrize("name", ["Keys", "Projects", "Users"])
def test_both_clients_have_the_same_methods(name: str) -> None:
    def methods(kind: type) -> set[str]:
        return {method for method in dir(kind) if not method.startswith("_")}

    assert methods(getattr(access, name)) == methods(getattr(access, f"Async{name}"))
