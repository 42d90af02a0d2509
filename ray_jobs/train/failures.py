"""What a failure of the workers is answered with: another start, or the end of the run.

By its class. An error of our own of which the user, the data or the numbers are the cause comes again: the same spec
and the same files fail the same way, so it ends the run at once. It does not matter whether all workers raise it: the
group of a run that ends is killed, and with it the workers that wait for the one that raised. All else, a dead worker
or node, a storage that does not answer, an error that nobody foresaw, is the infrastructure's, and the workers start
again from the last checkpoint as often as the spec allows.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.exceptions import TrainingFailedError

from service.errors import SleddogError, WorkerLostError


def cause_of(error: TrainingFailedError) -> SleddogError:
    """What to tell the user of a run that has ended; of several causes one that a restart cannot mend."""
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    known = [cause for failure in (error, *failures.values()) if (cause := _known_cause(failure)) is not None]
    known.sort(key=can_restart)
    if known:
        return known[0]
    ranks = ", ".join(str(rank) for rank in sorted(failures)) or "none that Ray knows of"
    return WorkerLostError(f"workers have failed (ranks: {ranks}): {error}")


def can_restart(error: SleddogError) -> bool:
    """Whether a restart from the last checkpoint may mend it."""
    return error.fault == "infrastructure"


def _known_cause(error: BaseException | None) -> SleddogError | None:
    """The error of ours in a chain of causes, if there is one; Ray keeps some causes in attributes."""
    while error is not None:
        if isinstance(error, SleddogError):
            return error
        error = getattr(error, "controller_failure", None) or getattr(error, "cause", None) or error.__cause__
    return None
