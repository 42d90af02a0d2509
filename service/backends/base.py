"""What the control plane needs of a place where jobs run."""

from __future__ import annotations

from typing import Literal, Protocol

AttemptState = Literal["pending", "running", "stopped", "succeeded", "failed"]


def submission_id(job_id: str, attempt: int) -> str:
    """Name of one start of a job's driver: submitting it again is recognised."""
    return f"{job_id}-a{attempt}"


def job_and_attempt(submission_id: str) -> tuple[str, int]:
    """What a submission's name is made of."""
    job_id, _, attempt = submission_id.rpartition("-a")
    return job_id, int(attempt)


class Backend(Protocol):
    """Runs drivers. Every call may raise `BackendUnavailableError`, and may then be repeated."""

    @property
    def shares_filesystem(self) -> bool:
        """Whether local files are the same here and there."""
        ...

    def ping(self) -> None:
        """Raise when the cluster does not answer."""
        ...

    def submit(self, submission_id: str, run_url: str, attempt: int, spec_sha256: str) -> None:
        """Start a driver; when this very attempt was submitted before, do nothing."""
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
