"""Runs drivers through the Ray Jobs REST API.

Ray's own client has no timeouts and takes its address from the environment; four plain requests need neither. A
duplicate submission is refused by Ray, as an error 500 with text, so after any failed submit the attempt is looked up
and its spec's hash compared: the same attempt is adopted, never started twice.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import httpx

from service.backends.base import AttemptState
from service.errors import BackendRefusedError, BackendUnavailableError, ConflictError
from service.schedule.queue import Resources
from service.spec.resources import RunKind

_STATES: dict[str, AttemptState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
_HASH = "sleddog_spec_sha256"
"""Metadata key that marks a submission as a control plane's."""


class RayJobs:
    """A Ray cluster's Jobs API.

    Args:
        dashboard_url: such as `http://127.0.0.1:8265`.
        token: the cluster's authentication token. Ray without authentication lets anybody run code, so it is required.
        python: interpreter on the cluster.
        modules: what the driver of each kind runs.
        shares_filesystem: whether the cluster sees this machine's files.
        max_cpus: CPUs that the cluster will ever have; None when it may grow.
        capacity: for workers, of a cluster that does not grow; None lets Ray find room.
        timeout_s: of each request.
    """

    def __init__(
        self,
        dashboard_url: str,
        token: str,
        *,
        python: str,
        modules: Mapping[RunKind, str],
        shares_filesystem: bool,
        max_cpus: float | None = None,
        capacity: Resources | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        self._shares_filesystem = shares_filesystem
        self._max_cpus, self._capacity = max_cpus, capacity
        self._python, self._modules = python, modules
        self._http = httpx.Client(
            base_url=dashboard_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            trust_env=False,
        )

    @property
    def shares_filesystem(self) -> bool:
        """Whether local files are the same here and there."""
        return self._shares_filesystem

    @property
    def max_cpus(self) -> float | None:
        """CPUs that the cluster will ever have; None when it may grow."""
        return self._max_cpus

    def capacity(self) -> Resources | None:
        """All that the cluster has for workers; None when that is not known, or it may grow."""
        return self._capacity

    def close(self) -> None:
        """Close the connections; jobs go on."""
        self._http.close()

    def ping(self) -> None:
        """Raise when the cluster does not answer, or does not accept the token."""
        self._require_success(self._request("GET", "/api/version"))

    def require_authentication(self) -> None:
        """Raise when the cluster answers without a token: then anybody on its network can run code on it."""
        try:
            open_answer = httpx.get(self._http.base_url.join("/api/jobs/"), timeout=self._http.timeout, trust_env=False)
        except httpx.HTTPError as error:
            raise BackendUnavailableError(f"Ray does not answer: {error}") from error
        if open_answer.status_code not in (401, 403):
            raise BackendUnavailableError(
                f"{self._http.base_url} accepts jobs without authentication; start Ray with RAY_AUTH_MODE=token"
            )

    def submit(self, submission_id: str, kind: RunKind, run_url: str, attempt: int, spec_sha256: str) -> None:
        """Start the driver of a job or a sweep; when this very attempt was submitted before, do nothing.

        Raises:
            BackendUnavailableError: Ray did not answer.
            BackendRefusedError: it answered that it would not.
            ConflictError: the id is taken by an attempt with another spec.
        """
        command = [self._python, "-m", self._modules[kind], "--run-url", run_url, "--attempt", str(attempt)]
        body = {
            "entrypoint": shlex.join(command),
            "submission_id": submission_id,
            "metadata": {_HASH: spec_sha256},
        }
        answer = self._request("POST", "/api/jobs/", json=body)
        if answer.is_success:
            return
        existing = self._find(submission_id)
        if existing is None:
            if answer.status_code < 500 or answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                raise BackendRefusedError(f"Ray answered {answer.status_code}: {answer.text[:500]}")
            self._require_success(answer)  # a proxy's answers, 502 to 504, say nothing of Ray
        elif (existing["metadata"] or {}).get(_HASH) != spec_sha256:
            raise ConflictError(f"Ray already runs another {submission_id}")

    def state(self, submission_id: str) -> tuple[AttemptState, str] | None:
        """How the driver stands, and Ray's own message; None when Ray does not know the attempt."""
        found = self._find(submission_id)
        return None if found is None else (_STATES[found["status"]], found.get("message") or "")

    def active(self) -> list[str]:
        """Submission ids of the drivers that wait or run; what others submitted to the cluster is left out."""
        answer = self._request("GET", "/api/jobs/")
        self._require_success(answer)
        return [
            job["submission_id"]
            for job in answer.json()
            if _HASH in (job["metadata"] or {}) and _STATES[job["status"]] in ("pending", "running")
        ]

    def stop(self, submission_id: str) -> None:
        """Ask a driver and all its processes to end: SIGTERM now, SIGKILL three seconds later."""
        answer = self._request("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._require_success(answer)

    def logs(self, submission_id: str) -> str:
        """All that the driver and its workers printed; empty when Ray does not know the attempt."""
        answer = self._request("GET", f"/api/jobs/{submission_id}/logs")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ""
        self._require_success(answer)
        return str(answer.json()["logs"])

    def _find(self, submission_id: str) -> dict[str, Any] | None:
        answer = self._request("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        self._require_success(answer)
        found: dict[str, Any] = answer.json()
        return found

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise BackendUnavailableError(f"Ray does not answer: {error}") from error

    def _require_success(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            raise BackendUnavailableError(f"Ray answered {answer.status_code}: {answer.text[:500]}")
