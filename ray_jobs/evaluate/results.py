"""What a task comes to: every sample, and the scores that follow from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Sample = dict[str, Any]
"""One question as asked and answered: `id`, `prompt`, `answer`, `target`, `verdict`, and what else the task knows."""


@dataclass(frozen=True)
class Metric:
    """A mean over questions.

    Attributes:
        score: the mean.
        standard_error: of the mean, by the questions' spread; None of a single one.
        n: questions.
    """

    score: float
    standard_error: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Metric:
        """Mean and standard error, with n - 1 degrees of freedom.

        Args:
            values: one a question, at least one.
        """
        n, mean = len(values), math.fsum(values) / len(values)
        if n == 1:
            return cls(mean, None, n)
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        return cls(mean, math.sqrt(variance / n), n)


@dataclass(frozen=True)
class TaskResult:
    """The outcome of a task.

    Attributes:
        samples: all of them, whatever became of them.
        metrics: by name, the one to look at first.
        failure: why there are none, if so.
    """

    samples: list[Sample]
    metrics: dict[str, Metric]
    failure: str | None = None

    def summary(self) -> dict[str, Any]:
        """The result without its samples, as the report has it."""
        return {
            "status": "failed" if self.failure else "succeeded",
            "reason": self.failure,
            "samples": len(self.samples),
            "verdicts": dict(Counter(sample["verdict"] for sample in self.samples)),
            "metrics": {name: vars(metric) for name, metric in self.metrics.items()},
        }


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Chance that of k answers, drawn from all without replacement, at least one passed.

    The unbiased estimate of Chen et al. 2021, "Evaluating Large Language Models Trained on Code".

    Args:
        num_samples: answers to the problem, at least k.
        num_passed: of them.
        k: at least 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie in 1 … {num_samples}, is {k}")
    return 1 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)
