"""Which candidates no other one beats in every metric."""

from __future__ import annotations

from collections.abc import Sequence

from service.spec.sweep_results import Candidate


def pareto_front(candidates: Sequence[Candidate], metrics: Sequence[str]) -> list[Candidate]:
    """Those of one stage, best score first, of which no other is at least as good in all metrics and better in one.

    Args:
        candidates: of the stage; those without all the metrics' gains are left out.
        metrics: names.
    """
    complete = [one for one in candidates if one.score is not None and all(name in one.gains for name in metrics)]
    front = [one for one in complete if not any(_dominates(other, one, metrics) for other in complete)]
    return sorted(front, key=lambda one: -one.score.value if one.score is not None else 0.0)


def _dominates(one: Candidate, other: Candidate, metrics: Sequence[str]) -> bool:
    pairs = [(one.gains[name].value, other.gains[name].value) for name in metrics]
    return all(mine >= theirs for mine, theirs in pairs) and any(mine > theirs for mine, theirs in pairs)
