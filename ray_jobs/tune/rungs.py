"""Which trials end early: asynchronous successive halving (Li et al. 2020, arXiv 1810.05934).

A trial that reaches a rung goes on if it is among the best of all that have reached it so far, its own score included.
It waits for nobody, so what comes early may go on where it would not have later; trials are compared at the same step,
which is the same number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.spec.sweep import EarlyStopSpec


def rung_steps(spec: EarlyStopSpec, max_steps: int) -> list[int]:
    """Steps after which trials are compared, ascending, all below `max_steps`."""
    steps: list[int] = []
    at = spec.first_rung * max_steps
    while (step := max(1, math.ceil(at - 1e-9))) < max_steps:
        if step not in steps:
            steps.append(step)
        at *= spec.reduction
    return steps


def is_stopped(score_at_rung: float, others_at_rung: Sequence[float], reduction: float) -> bool:
    """Whether a trial ends at a rung.

    The base mix's trials must not be asked: they are what the others are compared with, to the last step.

    Args:
        score_at_rung: the trial's `rung_score`; not a number is stopped in any case.
        others_at_rung: of all other trials of the stage that have reached the rung so far, those that went on and those
            that did not.
        reduction: one in so many goes on, rounded down but at least one.

    Returns:
        True if too many of the others are better. Equals go on.
    """
    if math.isnan(score_at_rung):
        return True
    num_kept = max(1, int((len(others_at_rung) + 1) / reduction))
    return sum(other > score_at_rung for other in others_at_rung) >= num_kept
