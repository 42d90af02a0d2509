"""What a failure of the worker group is answered with: another start, or the end of the run.

Ray Train restarts the group after ANY worker's error. An error of our own is deterministic, though: the same spec and
the same files fail again, so it ends the run at once. It does not matter whether all workers raise it: the group of a
run that ends is killed, and with it the workers that wait for the one that raised. (Returning the error as the
worker's result instead would leave those waiting until their collective times out.)

Ray Train also waits for ever for room to place the group again, one try after another; here the tries are counted.
"""

from __future__ import annotations

import math
from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from service.errors import PlacementError, SleddogError, WorkerLostError
from service.spec.train import ParallelSpec

_LONGEST_TRY_S = 60.0
"""Ray's own default: a try that failed is repeated with what the cluster has become by then."""


class EndRunOnKnownError(UserCallback):  # type: ignore[misc]
    """Raises in the controller what a worker raised on purpose: an error of a callback is never retried."""

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called at each poll that finds failed workers, before it is decided whether to restart them."""
        del run_context
        for error in worker_exceptions.values():
            if (known := _known_cause(error)) is not None:
                raise known


def placement_tries(spec: ParallelSpec) -> tuple[int, float]:
    """How often placing the group may fail in a run, and after how many seconds a try has failed.

    Together they last `placement_timeout_s`, over all restarts. A worker that dies while the group starts counts as a
    try too, so there is at least one for each death that the spec allows.
    """
    tries = max(spec.max_worker_failures + 1, math.ceil(spec.placement_timeout_s / _LONGEST_TRY_S))
    return tries, spec.placement_timeout_s / tries


def cause_of(error: TrainingFailedError, spec: ParallelSpec) -> SleddogError:
    """What to tell the user of a run that has ended."""
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    for failure in (error, *failures.values()):
        if (known := _known_cause(failure)) is not None:
            return known
    reason = error.controller_failure if isinstance(error, ControllerError) else None
    if isinstance(reason, (WorkerGroupStartupTimeoutError, InsufficientClusterResourcesError)):
        return PlacementError(
            f"{spec.num_workers} workers did not fit the cluster again after a restart; all waiting together may last "
            f"{spec.placement_timeout_s:.0f} s",
            "parallel.num_workers",
        )
    return WorkerLostError(f"the training workers failed too often: {error}")


def _known_cause(error: BaseException | None) -> SleddogError | None:
    """The error of ours in a chain of causes, if there is one; Ray keeps some causes in attributes."""
    while error is not None:
        if isinstance(error, SleddogError):
            return error
        error = getattr(error, "controller_failure", None) or getattr(error, "cause", None) or error.__cause__
    return None
