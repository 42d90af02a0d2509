"""What the control plane needs of a place where jobs run."""

from __future__ import annotations

from typing import Literal, Protocol

from service.schedule.queue import Resources
from service.spec.resources import RunKind

AttemptState = Literal["pending", "running", "stopped", "succeeded", "failed"]


def submission_id(run_id: str, attempt: int) -> str:
    """Name of one start of a driver, of a job or a sweep: submitting it again is recognised."""
    return f"{run_id}-a{attempt}"


def run_and_attempt(submission_id: str) -> tuple[str, int]:
    """What a submission's name is made of."""
    run_id, _, attempt = submission_id.rpartition("-a")
    return run_id, int(attempt)


class Backend(Protocol):
    """Runs drivers. Every call may raise `BackendUnavailableError`, and may then be repeated."""

    @property
    def shares_filesystem(self) -> bool:
        """Whether local files are the same here and there."""
        ...

    @property
    def max_cpus(self) -> float | None:
        """CPUs that the cluster will ever have; None when it may grow."""
        ...

    def capacity(self) -> Resources | None:
        """All that the cluster has for workers; None when that is not known, or it may grow."""
        ...

    def ping(self) -> None:
        """Raise when the cluster does not answer."""
        ...

    def submit(self, submission_id: str, kind: RunKind, run_url: str, attempt: int, spec_sha256: str) -> None:
        """Start the driver of a job or a sweep; when this very attempt was submitted before, do nothing."""
        ...

    def state(self, submission_id: str) -> tuple[AttemptState, str] | None:
        """How the driver stands, and the backend's own message; None when it does not know the attempt."""
        ...

    def active(self) -> list[str]:
        """Submission ids of the drivers that wait or run, those of other control planes on the same cluster too."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask a driver and all its processes to end."""
        ...

    def logs(self, submission_id: str) -> str:
        """All that the driver and its workers printed."""
        ...
