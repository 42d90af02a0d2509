"""Whether two stages rank the same candidates alike: how far to trust a proxy, or frozen experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from service.spec.sweep import StageSpec
from service.spec.sweep_results import Agreement

_TUNING = "train.tuning"


def compared(stages: Sequence[StageSpec]) -> list[tuple[str, str]]:
    """Names of the stages to compare: each with the next, and those that differ only in what is trained."""
    pairs = [(stages[n], stages[n + 1]) for n in range(len(stages) - 1)]
    for number, stage in enumerate(stages):
        pairs += [(stage, later) for later in stages[number + 2 :] if _differ_in_tuning_only(stage, later)]
    return [(first.name, second.name) for first, second in pairs]


def _differ_in_tuning_only(first: StageSpec, second: StageSpec) -> bool:
    changes = [{path: value for path, value in one.changes.items() if path != _TUNING} for one in (first, second)]
    return changes[0] == changes[1] and first.changes.get(_TUNING) != second.changes.get(_TUNING)


def agreement(first: str, second: str, scores: Mapping[str, float], other_scores: Mapping[str, float]) -> Agreement:
    """Spearman's rank correlation over what both stages scored.

    Args:
        first: name of a stage.
        second: of another.
        scores: in the first stage, by a key that is the same for the same candidate.
        other_scores: in the second.
    """
    both = sorted(set(scores) & set(other_scores))
    pair = np.array([[scores[key] for key in both], [other_scores[key] for key in both]])
    return Agreement(
        first=first,
        second=second,
        num_candidates=len(both),
        spearman=_spearman(pair) if len(both) >= 3 else None,
        same_best=bool(both) and both[int(pair[0].argmax())] == both[int(pair[1].argmax())],
    )


def _spearman(pair: np.ndarray) -> float | None:
    ranks = np.array([rankdata(row) for row in pair])
    if (ranks == ranks[:, :1]).all(axis=1).any():
        return None  # one stage found all of them equal, which orders nothing
    return float(np.corrcoef(ranks)[0, 1])
