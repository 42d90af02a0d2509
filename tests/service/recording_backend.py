"""A backend in memory, for the reconciler's decisions: the test plays the cluster. Real Ray is in test_ray_jobs."""

from __future__ import annotations

from service.backends.base import AttemptState
from service.errors import BackendUnavailableError, ConflictError
from service.schedule.queue import Resources
from service.spec.resources import RunKind


class RecordingBackend:
    def __init__(self) -> None:
        self.states: dict[str, tuple[AttemptState, str]] = {}
        self.submitted: list[str] = []
        self.kinds: dict[str, RunKind] = {}
        self.stopped: list[str] = []
        self.is_down = False
        self.refused: set[str] = set()
        self.shares_filesystem = True
        self.max_cpus: float | None = None
        self.printed: dict[str, str] = {}

    def _require_up(self) -> None:
        if self.is_down:
            raise BackendUnavailableError("down")

    def capacity(self) -> Resources | None:
        return None if self.max_cpus is None else Resources(self.max_cpus)

    def ping(self) -> None:
        self._require_up()

    def submit(self, submission_id: str, kind: RunKind, run_url: str, attempt: int, spec_sha256: str) -> None:
        self._require_up()
        if submission_id in self.refused:
            raise ConflictError(f"Ray already runs another {submission_id}")
        self.submitted.append(submission_id)
        self.kinds[submission_id] = kind
        self.states.setdefault(submission_id, ("running", ""))

    def state(self, submission_id: str) -> tuple[AttemptState, str] | None:
        self._require_up()
        return self.states.get(submission_id)

    def active(self) -> list[str]:
        self._require_up()
        return [name for name, (state, _) in self.states.items() if state in ("pending", "running")]

    def stop(self, submission_id: str) -> None:
        self._require_up()
        self.stopped.append(submission_id)

    def logs(self, submission_id: str) -> str:
        self._require_up()
        return self.printed.get(submission_id, f"one\ntwo\nlogs of {submission_id}\n")
