"""A client of a language model behind OpenAI's chat completions API, which most servers speak.

A server may be busy or away, so a request is repeated with growing pauses; what a repetition cannot mend (key, model,
request) is the spec's fault and an error at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from service.errors import EndpointError, InvalidSpecError
from service.spec.endpoint import EndpointSpec

_RETRIED_STATUSES = (408, 409, 425, 429)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_MAX_CHARS_SHOWN = 200


class _BusyError(Exception):
    """The endpoint did not answer now, and may do so later; after so many seconds, if it says."""

    def __init__(self, problem: str, pause_s: float = 0.0) -> None:
        super().__init__(problem)
        self.pause_s = pause_s


class Endpoint:
    """A client of one endpoint, for any number of threads; close it, or use it as a context manager.

    Args:
        spec: which endpoint and how.
        field: path of `spec` in the job's spec, for errors.
        pause: waits so many seconds.

    Raises:
        InvalidSpecError: the environment variable of the key is not set.
    """

    def __init__(self, spec: EndpointSpec, field: str, pause: Callable[[float], None] = time.sleep) -> None:
        self._spec, self._field, self._pause = spec, field, pause
        self._client = httpx.Client(
            base_url=spec.base_url.rstrip("/") + "/", headers=_authorization(spec, field), timeout=spec.timeout_s
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def complete(self, messages: Sequence[dict[str, str]], **fields: Any) -> str:
        """What the model says next.

        Args:
            messages: of `role` and `content`.
            fields: further ones of the request.

        Returns:
            Its text; empty when the answer holds none.

        Raises:
            EndpointError: the endpoint did not answer, however often it was asked.
            InvalidSpecError: it refused, in a way that asking again does not mend.
        """
        body = {"model": self._spec.model, "temperature": self._spec.temperature, "messages": messages, **fields}
        attempts = self._spec.max_retries + 1
        for attempt in range(attempts):
            try:
                return _content(self._post(body))
            except _BusyError as error:
                busy = error
            if attempt + 1 < attempts:
                self._pause(min(max(_FIRST_PAUSE_S * 2**attempt, busy.pause_s), _LONGEST_PAUSE_S))
        raise EndpointError(f"{self._spec.base_url} was asked {attempts} times, at last: {busy}", self._field)

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            response = self._client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            raise _BusyError(f"{type(error).__name__}: {error}") from error
        if response.is_success:
            return response
        shown = f"status {response.status_code}: {' '.join(response.text.split())[:_MAX_CHARS_SHOWN]}"
        if response.status_code in _RETRIED_STATUSES or response.status_code >= 500:
            raise _BusyError(shown, _seconds(response.headers.get("retry-after", "")))
        name = {401: ".api_key_env", 403: ".api_key_env", 404: ".model"}.get(response.status_code, "")
        raise InvalidSpecError(f"{self._spec.base_url} refuses: {shown}", f"{self._field}{name}")


def _authorization(spec: EndpointSpec, field: str) -> dict[str, str]:
    if spec.api_key_env is None:
        return {}
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise InvalidSpecError(f"the environment variable {spec.api_key_env} is not set", f"{field}.api_key_env")
    return {"Authorization": f"Bearer {key}"}


def _seconds(retry_after: str) -> float:
    try:
        return max(0.0, float(retry_after))
    except ValueError:  # a date, or nothing
        return 0.0


def _content(response: httpx.Response) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""
