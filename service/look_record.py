"""What the reconciler tells of itself, for those who watch over it.

Counted in this process since it began, as Prometheus takes counters: the sum over replicas is what happened, for each
change of a run is made, and counted, by one of them.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from service.errors import Fault
from service.spec.resources import RunKind


@dataclass
class LookRecord:
    """Of the looks, and of what was done in them.

    Attributes:
        finished_at: when the last look ended, by `time.monotonic`; at first when the loop was made.
        duration_s: of the last look.
        num_looks, num_failures: looks so far, and how many of them failed, of the whole or of one run.
        is_cluster_up: whether the cluster answered when it was last asked for its drivers; None before that.
        num_events: taken in from run directories.
        num_intake_failures: times that a run directory or the store did not answer.
        lost_attempts: drivers that were lost, or failed by the infrastructure, by kind of run.
        failed_runs: that have failed, by kind and by who can mend it.
    """

    finished_at: float = field(default_factory=time.monotonic)
    duration_s: float = 0.0
    num_looks: int = 0
    num_failures: int = 0
    is_cluster_up: bool | None = None
    num_events: int = 0
    num_intake_failures: int = 0
    lost_attempts: Counter[RunKind] = field(default_factory=Counter)
    failed_runs: Counter[tuple[RunKind, Fault]] = field(default_factory=Counter)
