"""Which conversations are held out, and which make up the mix. Pure functions of content, seed and proportions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

_MIN_CONVERSATIONS_TO_HOLD_OUT = 20
"""Copies of one count once."""


def within_cap(content_hashes: Sequence[bytes], max_rows: int) -> np.ndarray:
    """Which conversations of a source its cap lets in: those with the smallest hashes, copies in their order.

    By hash and not the first ones, because files are often sorted by subject; and without the seed, so that jobs that
    differ in it alone share one corpus.

    Args:
        content_hashes: of N conversations.
        max_rows: to let in.

    Returns:
        bool [N], with min(N, max_rows) set.
    """
    order = sorted(range(len(content_hashes)), key=content_hashes.__getitem__)
    inside = np.zeros(len(content_hashes), dtype=bool)
    inside[order[:max_rows]] = True
    return inside


def held_out(content_hashes: Sequence[bytes], categories: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which conversations to keep from training.

    A conversation's lot depends on its content and the seed alone, so adding other data does not move it from one side
    to the other, and copies stay together.

    Args:
        content_hashes: of N conversations.
        categories: of each.
        fraction: expected share of each category.
        seed: of the draw.

    Returns:
        bool [N]; at least one of every category that has 20 different conversations or more, unless the fraction is 0.
    """
    lots = np.array([_lot(content_hash, seed) for content_hash in content_hashes])
    chosen = lots < fraction
    if fraction > 0:
        names = np.array(categories)
        for category in sorted(set(categories)):
            is_member = names == category
            drawn = np.unique(lots[is_member])
            if len(drawn) >= _MIN_CONVERSATIONS_TO_HOLD_OUT and not chosen[is_member].any():
                chosen |= lots == drawn[0]
    return chosen


def _lot(content_hash: bytes, seed: int) -> float:
    digest = hashlib.sha256(seed.to_bytes(8, "little") + content_hash).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def choose_mixture(
    categories: Sequence[str], num_tokens: Sequence[int], shares: Mapping[str, float] | None, seed: int
) -> np.ndarray:
    """Which conversations make up the mix; none is taken twice.

    Args:
        categories: of N conversations.
        num_tokens: of each.
        shares: wanted share of tokens by category, not necessarily summing to 1; None takes everything.
        seed: decides which conversations of a plentiful category are left out.

    Returns:
        Sorted indices. The category that is scarcest for its share is taken whole; the others stop at the last
        conversation that fits their share.
    """
    if shares is None:
        return np.arange(len(categories))
    names, tokens = np.array(categories), np.array(num_tokens)
    available = {category: int(tokens[names == category].sum()) for category in shares}
    unit = min(available[category] / share for category, share in shares.items())
    rng = np.random.default_rng([seed, 1])
    taken = []
    for category, share in sorted(shares.items()):
        members = rng.permutation(np.flatnonzero(names == category))
        # a whisker above the budget, so that rounding cannot cost the scarcest category its last conversation
        fits = np.cumsum(tokens[members]) <= unit * share * (1 + 1e-9)
        taken.append(members[fits])
    return np.sort(np.concatenate(taken))
