"""Whether two stages rank the same candidates alike: how far to trust a proxy, or frozen experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations

import numpy as np
from scipy.special import stdtr
from scipy.stats import rankdata

from service.spec.sweep_results import Agreement

_COUNTED = 7
"""Candidates up to which all orders are gone through, 5,040; of more, Student's t is close enough."""


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
    ranks = np.array([rankdata(row) for row in pair])
    correlation = _spearman(ranks) if len(both) >= 3 else None
    return Agreement(
        first=first,
        second=second,
        num_candidates=len(both),
        spearman=correlation,
        chance=None if correlation is None else _chance(ranks, correlation),
        same_best=bool(both) and both[int(pair[0].argmax())] == both[int(pair[1].argmax())],
    )


def _spearman(ranks: np.ndarray) -> float | None:
    if (ranks == ranks[:, :1]).all(axis=1).any():
        return None  # one stage found all of them equal, which orders nothing
    return float(np.corrcoef(ranks)[0, 1])


def _chance(ranks: np.ndarray, correlation: float) -> float:
    """Share of all orders of the second stage's ranks whose correlation with the first's is as high."""
    num_candidates = ranks.shape[1]
    if num_candidates > _COUNTED:
        t = correlation * math.sqrt((num_candidates - 2) / max(1 - correlation**2, 1e-12))
        return float(1 - stdtr(num_candidates - 2, t))
    first, second = ranks - ranks.mean(axis=1, keepdims=True)
    products = np.array(list(permutations(second))) @ first
    return float(np.mean(products >= first @ second - 1e-9))
