"""The Python client: `Client` blocks, `AsyncClient` awaits; both send the calls of `service.client.calls`.

    with Client("http://127.0.0.1:8700", api_key="sd-…") as client:
        job = client.jobs.create(load_spec("job.yaml"))
        client.jobs.wait(job.id)

Requests are repeated when the service is busy or away for a moment; every one of them may be.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import time
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from service.client import calls
from service.client.calls import Call
from service.client.runs import PAGE, AsyncRuns, Runs
from service.client.sweeps import AsyncSweeps, Sweeps
from service.errors import InvalidSettingsError, NotAuthenticatedError
from service.spec.job import JobSpec
from service.spec.plan import Plan, PlanRequest
from service.spec.promotion import Promotion
from service.spec.resources import Health, Job, StepMetrics

Answer = TypeVar("Answer")

DEFAULT_URL = "http://127.0.0.1:8700"


def _options(url: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    key = api_key or os.environ.get("SLEDDOG_API_KEY") or _key_from_file()
    if key is None:
        raise NotAuthenticatedError(
            "no API key: give one, set SLEDDOG_API_KEY or SLEDDOG_API_KEY_FILE, or be where `sleddog serve` was started"
        )
    if not key.strip().isascii():
        raise InvalidSettingsError("this is no API key: it holds characters beyond ASCII")
    url = url or os.environ.get("SLEDDOG_URL") or DEFAULT_URL
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {key.strip()}"},
        "timeout": timeout_s,
        "trust_env": not is_loopback(url),
    }


def _key_from_file() -> str | None:
    path = os.environ.get("SLEDDOG_API_KEY_FILE")
    return Path(path).read_text() if path else None


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
        url: of the service; by default `SLEDDOG_URL`, else this machine.
        api_key: by default `SLEDDOG_API_KEY`, else the content of the file `SLEDDOG_API_KEY_FILE`.
        timeout_s: of each request.
        transport: another way to send requests, such as a test's.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_options(url, api_key, timeout_s), transport=transport)
        self.jobs = Jobs(self)
        self.sweeps = Sweeps(self)

    def health(self) -> Health:
        """Whether the service answers."""
        return self.send(calls.get_health())

    def send(self, call: Call[Answer]) -> Answer:
        """Send a call, again when the service is busy or away for a moment.

        Raises:
            SleddogError: the kind that the service answered; ServiceUnreachableError when it did not.
        """
        for retry in range(calls.MAX_RETRIES + 1):
            is_last = retry == calls.MAX_RETRIES
            try:
                response = self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                if is_last:
                    raise calls.unreachable(self._http.base_url, error) from error
            else:
                if is_last or not calls.is_retried(response):
                    return calls.read_answer(call, response)
            time.sleep(calls.retry_delay_s(retry))
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Jobs(Runs[Job]):
    """`client.jobs`."""

    def __init__(self, client: Client) -> None:
        super().__init__(client, calls.JOBS)

    def create(self, spec: JobSpec, *, idempotency_key: str | None = None) -> Job:
        """Post a job; safe to repeat with the same key."""
        return self._client.send(self._calls.create(spec, idempotency_key))

    def create_from(self, promotion: Promotion, *, idempotency_key: str | None = None) -> Job:
        """Post the job of a sweep's candidate, such as `sweep.best()`."""
        return self.create(promotion.job, idempotency_key=idempotency_key)

    def plan(self, request: PlanRequest) -> Plan:
        """What a job would need and take; nothing is started."""
        return self._client.send(calls.plan_job(request))

    def metrics(self, job_id: str) -> builtins.list[StepMetrics]:
        """Metrics of all steps so far."""
        metrics: builtins.list[StepMetrics] = []
        while True:
            page = self._client.send(calls.list_metrics(job_id, metrics[-1].step if metrics else 0, PAGE))
            metrics += page.data
            if not page.has_more:
                return metrics

    def logs(self, job_id: str, *, tail: int | None = None) -> str:
        """What the job printed."""
        return self._client.send(calls.get_logs(job_id, tail))

    def report(self, job_id: str) -> dict[str, Any]:
        """What a finished job did."""
        return self._client.send(calls.get_report(job_id))


class AsyncClient:
    """As `Client`, awaited."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, api_key, timeout_s), transport=transport)
        self.jobs = AsyncJobs(self)
        self.sweeps = AsyncSweeps(self)

    async def health(self) -> Health:
        """As `Client.health`."""
        return await self.send(calls.get_health())

    async def send(self, call: Call[Answer]) -> Answer:
        """As `Client.send`."""
        for retry in range(calls.MAX_RETRIES + 1):
            is_last = retry == calls.MAX_RETRIES
            try:
                response = await self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                if is_last:
                    raise calls.unreachable(self._http.base_url, error) from error
            else:
                if is_last or not calls.is_retried(response):
                    return calls.read_answer(call, response)
            await asyncio.sleep(calls.retry_delay_s(retry))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


class AsyncJobs(AsyncRuns[Job]):
    """`async_client.jobs`: as `Jobs`, awaited."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client, calls.JOBS)

    async def create(self, spec: JobSpec, *, idempotency_key: str | None = None) -> Job:
        """As `Jobs.create`."""
        return await self._client.send(self._calls.create(spec, idempotency_key))

    async def create_from(self, promotion: Promotion, *, idempotency_key: str | None = None) -> Job:
        """As `Jobs.create_from`."""
        return await self.create(promotion.job, idempotency_key=idempotency_key)

    async def plan(self, request: PlanRequest) -> Plan:
        """As `Jobs.plan`."""
        return await self._client.send(calls.plan_job(request))

    async def metrics(self, job_id: str) -> builtins.list[StepMetrics]:
        """As `Jobs.metrics`."""
        metrics: builtins.list[StepMetrics] = []
        while True:
            page = await self._client.send(calls.list_metrics(job_id, metrics[-1].step if metrics else 0, PAGE))
            metrics += page.data
            if not page.has_more:
                return metrics

    async def logs(self, job_id: str, *, tail: int | None = None) -> str:
        """As `Jobs.logs`."""
        return await self._client.send(calls.get_logs(job_id, tail))

    async def report(self, job_id: str) -> dict[str, Any]:
        """As `Jobs.report`."""
        return await self._client.send(calls.get_report(job_id))
