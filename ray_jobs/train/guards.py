"""What a run watches itself for while it trains, and warns of.

A gradient that is NaN or infinite changes nothing, neither weights nor moments: the step is skipped (by DeepSpeed's own
check of each gradient). A single one may come of a single row; several in a row do not pass by themselves, and end the
run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from ray_jobs.train.checkpoint import TrainingState
from ray_jobs.train.expert_load import collapse, effective_experts, max_over_mean
from service.errors import NonFiniteLossError
from service.spec.event import WarningKind
from service.spec.train import TrainSpec

_LEVEL_STEPS = 10
"""A loss is compared with the median of so many before it; there is no warning until there are as many."""
_CHANGE_STEPS = 50
"""How much losses vary is judged by so many changes from step to step, which a trend hardly enters."""
_SPIKE_DEVIATIONS = 8.0
_SPIKE_RATIO = 1.2
"""A spike lies both so many deviations and so many times above the level: losses late in a run hardly vary."""
_DEAD_STEPS = 20
"""An expert is dead when so many global batches in a row have sent it nothing."""
_COLLAPSE = 0.5
"""A layer's load has collapsed when it is nearer to its worst than to even (`expert_load.collapse`) …"""
_COLLAPSE_STEPS = 20
"""… in so many global batches in a row: a batch of one kind of rows may go to few experts, as trained, and pass."""


@dataclass(frozen=True)
class TrainingWarning:
    """Something that a user would want to look at; the run goes on.

    Attributes:
        kind: for programs.
        message: for people.
    """

    kind: WarningKind
    message: str


def require_progress(state: TrainingState, spec: TrainSpec) -> None:
    """Check that not too many steps in a row were skipped.

    Raises:
        NonFiniteLossError: they were.
    """
    if state.skipped_in_a_row > spec.max_skipped_steps:
        raise NonFiniteLossError(
            f"step {state.step}: a NaN or infinite gradient, {state.skipped_in_a_row} steps in a row; try a lower "
            "learning rate, or look for what is wrong with the rows of these steps",
            "train.learning_rate",
        )


def require_measured(losses: Mapping[str, float], when: str) -> None:
    """Check that held-out losses are numbers: from the same weights and rows the same comes again.

    Args:
        losses: by category.
        when: they were measured.

    Raises:
        NonFiniteLossError: one is not.
    """
    for category, loss in losses.items():
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"{when}: the held-out loss of {category} is {loss}; try a lower learning rate, or fp32",
                "train.learning_rate",
            )


class Guards:
    """Judges one step after the other, from the metrics of global batches.

    Args:
        top_k: experts of a token.
    """

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._losses: deque[float] = deque(maxlen=_LEVEL_STEPS)
        self._changes: deque[float] = deque(maxlen=_CHANGE_STEPS)
        self._idle_steps: list[list[int]] = []
        self._collapsed_steps: list[int] = []

    def check(self, step: int, loss: float, copies_LE: Tensor) -> list[TrainingWarning]:
        """Warnings of one step that was taken.

        Args:
            step: 1-based.
            loss: nats per trained token.
            copies_LE: token copies by layer and expert.
        """
        experts = self._check_experts(step, copies_LE.tolist())
        return self._check_loss(step, loss) + experts + self._check_routers(step, copies_LE)

    def _check_loss(self, step: int, loss: float) -> list[TrainingWarning]:
        if not math.isfinite(loss):
            return []
        warnings = []
        if len(self._losses) == _LEVEL_STEPS:
            level = median(self._losses)
            # of a normal distribution 1.4826 median absolute deviations are one standard deviation
            deviation = 1.4826 * median(self._changes)
            if loss > max(level + _SPIKE_DEVIATIONS * deviation, _SPIKE_RATIO * level):
                message = f"step {step}: the loss {loss:.4g} stands out from {level:.4g}, the median of the last steps"
                warnings.append(TrainingWarning("loss_spike", message))
        if self._losses:
            self._changes.append(abs(loss - self._losses[-1]))
        self._losses.append(loss)
        return warnings

    def _check_experts(self, step: int, copies_LE: Sequence[Sequence[float]]) -> list[TrainingWarning]:
        """Told once, when it is known; again only after the expert had a token."""
        if not self._idle_steps:
            self._idle_steps = [[0] * len(copies_E) for copies_E in copies_LE]
        warnings = []
        for layer, copies_E in enumerate(copies_LE):
            idle_E = self._idle_steps[layer]
            for expert, copies in enumerate(copies_E):
                idle_E[expert] = 0 if copies else idle_E[expert] + 1
            dead = [expert for expert, steps in enumerate(idle_E) if steps == _DEAD_STEPS]
            if dead:
                names = ", ".join(map(str, dead))
                message = f"step {step}: layer {layer}: no token came to expert {names} in the last {_DEAD_STEPS} steps"
                warnings.append(TrainingWarning("dead_experts", message))
        return warnings

    def _check_routers(self, step: int, copies_LE: Tensor) -> list[TrainingWarning]:
        """Told once, when it is known; again only after a step in which the layer had recovered."""
        collapsed_L = (collapse(copies_LE, self._top_k) > _COLLAPSE).tolist()
        before_L = self._collapsed_steps or [0] * len(collapsed_L)
        self._collapsed_steps = [
            steps + 1 if collapsed else 0 for collapsed, steps in zip(collapsed_L, before_L, strict=True)
        ]
        return [
            TrainingWarning("router_collapse", _collapse_message(step, layer, copies_LE[layer], self._top_k))
            for layer, steps in enumerate(self._collapsed_steps)
            if steps == _COLLAPSE_STEPS
        ]


def _collapse_message(step: int, layer: int, copies_E: Tensor, top_k: int) -> str:
    num_experts = len(copies_E)
    busiest_fraction = float(max_over_mean(copies_E)) * top_k / num_experts
    return (
        f"step {step}: layer {layer}: the router has been collapsed for {_COLLAPSE_STEPS} steps: its load is that of "
        f"{float(effective_experts(copies_E)):.1f} evenly used experts of {num_experts}, and {busiest_fraction:.0%} of "
        f"the tokens choose expert {int(copies_E.argmax())}, where {top_k / num_experts:.0%} would be even"
    )
