"""Which conversations are let in, held out, and make up the mix. Pure functions of content, seed and proportions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from service.spec.mixture import CategoryShare

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
        content_hashes: of N conversations; equal for those that must stay together.
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


class Candidates(NamedTuple):
    """Conversations that a mixture is made of.

    Attributes:
        category: of each of N conversations, str [N].
        source: of each, its place in the spec, int [N].
        size: of each, as the mixture counts: its tokens, or 1; int [N].
    """

    category: np.ndarray
    source: np.ndarray
    size: np.ndarray


class Mixture(NamedTuple):
    """What a mixture takes.

    Attributes:
        chosen: sorted indices; one that is taken several times stands there as often.
        stopped_by: for each category why it has no more: `supply` (all was taken, as often as it may be), `cap`, or
            `share`.
    """

    chosen: np.ndarray
    stopped_by: dict[str, Literal["supply", "cap", "share"]]


def choose_mixture(
    candidates: Candidates,
    shares: Mapping[str, CategoryShare] | None,
    weights: Sequence[float],
    epochs: Sequence[float | None],
    seed: int,
) -> Mixture:
    """Which conversations make up the mix, and how often each.

    Args:
        candidates: to choose from; at least one of every category whose share is above 0.
        shares: wanted by category; None takes everything.
        weights: of each source, how readily it is taken.
        epochs: of each source, how often its conversations may be taken; None leaves it to the category.
        seed: decides which conversations of a plentiful category are left out.

    Returns:
        The category that is scarcest for its share is taken whole; the others stop at the last conversation that fits
        their share, or their cap. Within a category no conversation is taken again before all were that may be.
    """
    if shares is None:
        everything = np.arange(len(candidates.size))
        times = np.array([1.0 if number is None else number for number in epochs])
        return Mixture(np.sort(_in_order(candidates, everything, weights, times, (seed, 0))), {})
    rng = np.random.default_rng([seed, 1])
    offers = {}
    for number, (category, share) in enumerate(sorted(shares.items())):
        if not share.share:
            continue
        members = rng.permutation(np.flatnonzero(candidates.category == category))
        times = np.array([share.max_epochs if own is None else own for own in epochs])
        offers[category] = _in_order(candidates, members, weights, times, (seed, number))
    unit = min(candidates.size[offer].sum() / shares[category].share for category, offer in offers.items())
    taken: list[np.ndarray] = []
    stopped_by: dict[str, Literal["supply", "cap", "share"]] = dict.fromkeys(sorted(shares), "share")
    for category, offer in offers.items():
        # a whisker above the budget, so that rounding cannot cost the scarcest category its last conversation
        budget, cap = unit * shares[category].share * (1 + 1e-9), shares[category].cap
        amount = np.cumsum(candidates.size[offer])
        mine = offer[amount <= (budget if cap is None else min(budget, cap))]
        taken.append(mine)
        stopped_by[category] = _why(len(mine) == len(offer), cap is not None and cap < budget)
    return Mixture(np.sort(np.concatenate(taken)), stopped_by)


def _why(is_whole: bool, is_capped: bool) -> Literal["supply", "cap", "share"]:
    if is_whole:
        return "supply"
    return "cap" if is_capped else "share"


def _in_order(
    candidates: Candidates, members: np.ndarray, weights: Sequence[float], times: np.ndarray, seeds: tuple[int, int]
) -> np.ndarray:
    """All that may be taken of a category, in the order of taking; passes over its members, each in another order.

    Args:
        candidates: all.
        members: indices of the category's, in the first pass's order before weights.
        weights: of each source.
        times: of each source, how often its conversations may be taken.
        seeds: decide the other passes' orders: the job's, and the category's number.
    """
    passes = []
    most = times[candidates.source[members]].max()
    for count in range(int(np.ceil(most))):
        order = np.random.default_rng([*seeds, 2, count]).permutation(members) if count else members
        order = order[_arrival(np.array(weights)[candidates.source[order]])]
        fraction = np.clip(times - count, 0, 1)[candidates.source[order]]
        passes.append(order[_first_fraction(candidates.source[order], fraction)])
    return np.concatenate(passes)


def _arrival(weight: np.ndarray) -> np.ndarray:
    """Places in the order of arrival, if the one of rank r of N has a lifetime at quantile (r + 1/2) / N.

    Exponential lifetimes divided by the weight give sampling without replacement in proportion to it (Efraimidis and
    Spirakis 2006); equal weights leave the order as it is.
    """
    quantile = (np.arange(len(weight)) + 0.5) / len(weight)
    order: np.ndarray = np.argsort(-np.log1p(-quantile) / weight, kind="stable")
    return order


def _first_fraction(source: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Which of them are among the first of their source, up to a fraction of it, rounded up; bool [N]."""
    rank, size = np.zeros(len(source), dtype=np.int64), np.zeros(len(source), dtype=np.int64)
    for value in np.unique(source):
        mine = np.flatnonzero(source == value)
        rank[mine], size[mine] = np.arange(len(mine)), len(mine)
    first: np.ndarray = rank < np.ceil(fraction * size - 1e-9)
    return first
