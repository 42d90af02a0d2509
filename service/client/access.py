"""`client.projects`, `client.users` and `client.keys`, blocking and awaited."""

from __future__ import annotations

from service.client import access_calls
from service.client.runs import AsyncSender, Sender
from service.spec.access import (
    ApiKey,
    CreatedKey,
    CreatedProject,
    NewKey,
    NewProject,
    NewUser,
    Project,
    Role,
    Rotation,
    User,
)
from service.spec.resources import Page


class Projects:
    """`client.projects`."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def create(self, new: NewProject, *, idempotency_key: str | None = None) -> CreatedProject:
        """Make a project; `first_key.secret` opens it, and is shown this once."""
        return self._client.send(access_calls.create_project(new, idempotency_key))

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[Project]:
        """One page, by id."""
        return self._client.send(access_calls.list_projects(after, limit))


class Users:
    """`client.users`: the members of the key's project."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def create(self, new: NewUser, *, idempotency_key: str | None = None) -> User:
        """Take a user into the project."""
        return self._client.send(access_calls.create_user(new, idempotency_key))

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[User]:
        """One page, by id."""
        return self._client.send(access_calls.list_users(after, limit))

    def change_role(self, user_id: str, role: Role) -> User:
        """Give a member another role."""
        return self._client.send(access_calls.change_role(user_id, role))

    def remove(self, user_id: str) -> None:
        """Remove a member, and revoke their keys to the project."""
        self._client.send(access_calls.remove_user(user_id))


class Keys:
    """`client.keys`: the keys to the project."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def create(self, new: NewKey, *, idempotency_key: str | None = None) -> CreatedKey:
        """Make a key; its `secret` is shown this once."""
        return self._client.send(access_calls.create_key(new, idempotency_key))

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[ApiKey]:
        """One page, newest first."""
        return self._client.send(access_calls.list_keys(after, limit))

    def rotate(self, key_id: str, *, overlap_s: float = 86_400.0, idempotency_key: str | None = None) -> CreatedKey:
        """Make a key in the place of another, which still works for `overlap_s` seconds."""
        return self._client.send(access_calls.rotate_key(key_id, Rotation(overlap_s=overlap_s), idempotency_key))

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse a key from now on."""
        return self._client.send(access_calls.revoke_key(key_id))


class AsyncProjects:
    """`async_client.projects`: as of the blocking client, awaited."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def create(self, new: NewProject, *, idempotency_key: str | None = None) -> CreatedProject:
        """As `Projects.create`."""
        return await self._client.send(access_calls.create_project(new, idempotency_key))

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[Project]:
        """As `Projects.list`."""
        return await self._client.send(access_calls.list_projects(after, limit))


class AsyncUsers:
    """`async_client.users`: as of the blocking client, awaited."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def create(self, new: NewUser, *, idempotency_key: str | None = None) -> User:
        """As `Users.create`."""
        return await self._client.send(access_calls.create_user(new, idempotency_key))

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[User]:
        """As `Users.list`."""
        return await self._client.send(access_calls.list_users(after, limit))

    async def change_role(self, user_id: str, role: Role) -> User:
        """As `Users.change_role`."""
        return await self._client.send(access_calls.change_role(user_id, role))

    async def remove(self, user_id: str) -> None:
        """As `Users.remove`."""
        await self._client.send(access_calls.remove_user(user_id))


class AsyncKeys:
    """`async_client.keys`: as of the blocking client, awaited."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def create(self, new: NewKey, *, idempotency_key: str | None = None) -> CreatedKey:
        """As `Keys.create`."""
        return await self._client.send(access_calls.create_key(new, idempotency_key))

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[ApiKey]:
        """As `Keys.list`."""
        return await self._client.send(access_calls.list_keys(after, limit))

    async def rotate(
        self, key_id: str, *, overlap_s: float = 86_400.0, idempotency_key: str | None = None
    ) -> CreatedKey:
        """As `Keys.rotate`."""
        return await self._client.send(access_calls.rotate_key(key_id, Rotation(overlap_s=overlap_s), idempotency_key))

    async def revoke(self, key_id: str) -> ApiKey:
        """As `Keys.revoke`."""
        return await self._client.send(access_calls.revoke_key(key_id))
