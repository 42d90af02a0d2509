"""The Python client: `Client` blocks, `AsyncClient` awaits; both send the calls of `service.client.calls`.

    with Client("http://127.0.0.1:8700", api_key="sd-…") as client:
        job = client.jobs.create(load_spec("job.yaml"))
        client.jobs.wait(job.id)

Requests are repeated when the service is busy or away for a moment; every one of them may be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar

import httpx

from service.client import access_calls, calls
from service.client.access import AsyncKeys, AsyncProjects, AsyncUsers, Keys, Projects, Users
from service.client.calls import Call
from service.client.datasets import AsyncDatasets, Datasets
from service.client.jobs import AsyncJobs, Jobs
from service.client.models import AsyncModels, Models
from service.client.profile import find_connection
from service.client.sweeps import AsyncSweeps, Sweeps
from service.client.webhooks import AsyncWebhooks, Webhooks
from service.errors import InvalidSettingsError, NotAuthenticatedError
from service.spec.access import AuditEntry, Me, Project, ProjectChange, Quotas
from service.spec.outcomes import Preset
from service.spec.queue import Queue
from service.spec.resources import Health, Page

Answer = TypeVar("Answer")


def _options(url: str | None, api_key: str | None, profile: str | None, timeout_s: float) -> dict[str, Any]:
    connection = find_connection(url, api_key, profile)
    if connection.api_key is None:
        raise NotAuthenticatedError(
            "no API key: give one, set SLEDDOG_API_KEY or SLEDDOG_API_KEY_FILE, name a profile with one, or be where"
            " `sleddog serve` was started"
        )
    if not connection.api_key.strip().isascii():
        raise InvalidSettingsError("this is no API key: it holds characters beyond ASCII")
    return {
        "base_url": connection.url,
        "headers": {
            "Authorization": f"Bearer {connection.api_key.strip()}",
            "Accept": "application/json, application/problem+json",
        },
        "timeout": timeout_s,
        "trust_env": not is_loopback(connection.url),
    }


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself: no proxy leads there.

    Raises:
        InvalidSettingsError: it is no URL.
    """
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise InvalidSettingsError(f"{url!r} is no URL: {error}") from error
    return host == "localhost" or host.startswith("127.") or host == "::1"


class Client:
    """A blocking client.

    Args:
        url: of the service; by default `SLEDDOG_URL`, else the profile's, else this machine.
        api_key: by default `SLEDDOG_API_KEY`, else the content of the file `SLEDDOG_API_KEY_FILE`, else the profile's.
        profile: of the config file (`service.client.profile`); by default `SLEDDOG_PROFILE`.
        timeout_s: of each request.
        transport: another way to send requests, such as a test's.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_options(url, api_key, profile, timeout_s), transport=transport)
        self._kept = calls.KeptAnswers()
        self.jobs = Jobs(self)
        self.sweeps = Sweeps(self)
        self.datasets = Datasets(self)
        self.models = Models(self)
        self.webhooks = Webhooks(self)
        self.projects, self.users, self.keys = Projects(self), Users(self), Keys(self)

    def health(self) -> Health:
        """Whether the service answers."""
        return self.send(calls.get_health())

    def me(self) -> Me:
        """Whose the key is, and what it may do."""
        return self.send(access_calls.get_me())

    def audit(self, *, after: int | None = None, limit: int = 50) -> Page[AuditEntry]:
        """One page of writes and refused accesses, newest first."""
        return self.send(access_calls.list_audit(after, limit))

    def queue(self) -> Queue:
        """What runs and what waits of the project, and why."""
        return self.send(calls.get_queue())

    def project(self, project_id: str) -> Project:
        """A project, with its quotas."""
        return self.send(calls.get_project(project_id))

    def change_quotas(self, project_id: str, quotas: Quotas) -> Project:
        """Give a project other quotas, in the place of all those before; for the default project's admins."""
        return self.send(calls.change_project(project_id, ProjectChange(quotas=quotas)))

    def presets(self) -> list[Preset]:
        """Architectures that a job can start from by name."""
        return self.send(calls.list_presets())

    def send(self, call: Call[Answer]) -> Answer:
        """Send a call, again when the service is busy or away for a moment.

        Raises:
            SleddogError: the kind that the service answered; ServiceUnreachableError when it did not.
        """
        for retry in range(calls.MAX_RETRIES + 1):
            is_last = retry == calls.MAX_RETRIES
            wished_s = 0.0
            try:
                response = self._http.send(self._kept.request(call, self._http))
            except httpx.TransportError as error:
                if is_last:
                    raise calls.unreachable(self._http.base_url, error) from error
            else:
                wished_s = calls.retry_after_s(response)
                if is_last or not calls.is_retried(response) or wished_s > calls.LONGEST_WISH_S:
                    return self._kept.read(call, response)
            time.sleep(max(wished_s, calls.retry_delay_s(retry)))
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def open_stream(self, call: Call[None], read_timeout_s: float | None) -> Iterator[httpx.Response]:
        """Send a call once, and leave its answer to be read as it comes.

        Args:
            call: of a stream.
            read_timeout_s: longest silence; None allows any.

        Raises:
            SleddogError: the kind that the service answered.
            httpx.TransportError: there was no answer, or it broke off.
        """
        request = call.request(self._http)
        request.extensions["timeout"] = request.extensions["timeout"] | {"read": read_timeout_s}
        response = self._http.send(request, stream=True)
        try:
            if not response.is_success:
                response.read()
                calls.raise_unless_away(response)
            yield response
        finally:
            response.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncClient:
    """As `Client`, awaited."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        profile: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, api_key, profile, timeout_s), transport=transport)
        self._kept = calls.KeptAnswers()
        self.jobs = AsyncJobs(self)
        self.sweeps = AsyncSweeps(self)
        self.datasets = AsyncDatasets(self)
        self.models = AsyncModels(self)
        self.webhooks = AsyncWebhooks(self)
        self.projects, self.users, self.keys = AsyncProjects(self), AsyncUsers(self), AsyncKeys(self)

    async def health(self) -> Health:
        """As `Client.health`."""
        return await self.send(calls.get_health())

    async def me(self) -> Me:
        """As `Client.me`."""
        return await self.send(access_calls.get_me())

    async def audit(self, *, after: int | None = None, limit: int = 50) -> Page[AuditEntry]:
        """As `Client.audit`."""
        return await self.send(access_calls.list_audit(after, limit))

    async def queue(self) -> Queue:
        """As `Client.queue`."""
        return await self.send(calls.get_queue())

    async def project(self, project_id: str) -> Project:
        """As `Client.project`."""
        return await self.send(calls.get_project(project_id))

    async def change_quotas(self, project_id: str, quotas: Quotas) -> Project:
        """As `Client.change_quotas`."""
        return await self.send(calls.change_project(project_id, ProjectChange(quotas=quotas)))

    async def presets(self) -> list[Preset]:
        """As `Client.presets`."""
        return await self.send(calls.list_presets())

    async def send(self, call: Call[Answer]) -> Answer:
        """As `Client.send`."""
        for retry in range(calls.MAX_RETRIES + 1):
            is_last = retry == calls.MAX_RETRIES
            wished_s = 0.0
            try:
                response = await self._http.send(self._kept.request(call, self._http))
            except httpx.TransportError as error:
                if is_last:
                    raise calls.unreachable(self._http.base_url, error) from error
            else:
                wished_s = calls.retry_after_s(response)
                if is_last or not calls.is_retried(response) or wished_s > calls.LONGEST_WISH_S:
                    return self._kept.read(call, response)
            await asyncio.sleep(max(wished_s, calls.retry_delay_s(retry)))
        raise AssertionError("the last try returns or raises")

    @asynccontextmanager
    async def open_stream(self, call: Call[None], read_timeout_s: float | None) -> AsyncIterator[httpx.Response]:
        """As `Client.open_stream`."""
        request = call.request(self._http)
        request.extensions["timeout"] = request.extensions["timeout"] | {"read": read_timeout_s}
        response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                await response.aread()
                calls.raise_unless_away(response)
            yield response
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
