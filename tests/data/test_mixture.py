"""Held-out split and mixture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ray_jobs.data.mixture import choose_mixture, held_out, within_cap


def hashes(names: list[str]) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest()[:16] for name in names]


def test_a_cap_lets_in_the_same_conversations_in_any_order() -> None:
    names = [f"row {number}" for number in range(90)]
    inside = within_cap(hashes(names), 30)
    assert inside.sum() == 30
    assert (within_cap(hashes(names[::-1]), 30)[::-1] == inside).all()
    assert (within_cap(hashes(names), 31) >= inside).all(), "a higher cap keeps what a lower one let in"
    assert not inside[:30].all(), "not the first ones"
    assert within_cap(hashes(names[:2]), 30).tolist() == [True, True]


def test_the_split_depends_on_content_and_seed_alone() -> None:
    names = [f"row {number}" for number in range(400)]
    alone = held_out(hashes(names), ["a"] * 400, 0.1, seed=3)
    assert 20 < alone.sum() < 60
    reversed_split = held_out(hashes(names[::-1]), ["a"] * 400, 0.1, seed=3)
    assert (reversed_split[::-1] == alone).all()
    more = held_out(hashes(names + ["x"] * 50), ["a"] * 400 + ["b"] * 50, 0.1, seed=3)
    assert (more[:400] == alone).all(), "other data moves nothing from one side to the other"
    assert (held_out(hashes(names), ["a"] * 400, 0.1, seed=4) != alone).any()


@pytest.mark.parametrize(("size", "expected"), [(19, 0), (20, 1)])
def test_a_category_of_twenty_gives_at_least_one(size: int, expected: int) -> None:
    split = held_out(hashes([str(number) for number in range(size)]), ["a"] * size, 1e-9, seed=0)
    assert split.sum() == expected


def test_copies_stay_on_one_side() -> None:
    names = [str(number) for number in range(20)]
    copies = hashes(names * 2 + names[:10])
    split = held_out(copies, ["a"] * 40 + ["b"] * 10, 1e-9, seed=2)
    assert split.sum() == copies.count(copies[np.argmax(split)]) == 3, "in another category too"
    assert not held_out(hashes(["same"] * 90), ["a"] * 90, 1e-9, seed=0).any(), "something is left to train on"


def test_nothing_is_held_out_at_fraction_zero() -> None:
    assert not held_out(hashes([str(number) for number in range(90)]), ["a"] * 90, 0.0, seed=0).any()


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_of_tokens_and_the_scarcest_category_is_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    categories = rng.permutation(["code"] * 3000 + ["math"] * 1000 + ["who"] * 500)
    tokens = rng.integers(1, 200, len(categories))
    shares = {"code": 2.0, "math": 1.0, "who": 1.0}
    chosen = choose_mixture(categories.tolist(), tokens.tolist(), shares, seed)
    assert (np.diff(chosen) > 0).all(), "in order, none twice"
    got = {name: tokens[chosen][categories[chosen] == name].sum() for name in shares}
    assert got["who"] == tokens[categories == "who"].sum()
    for name, share in shares.items():
        assert 0 <= got["who"] * share - got[name] < 200, "short by less than one conversation"


def test_the_choice_depends_on_the_seed_and_nothing_else() -> None:
    categories, tokens, shares = ["a", "b"] * 50, [5] * 100, {"a": 0.8, "b": 0.2}
    first = choose_mixture(categories, tokens, shares, seed=1)
    assert (choose_mixture(categories, tokens, shares, seed=1) == first).all()
    assert set(choose_mixture(categories, tokens, shares, seed=2)) != set(first)


def test_without_shares_everything_is_taken() -> None:
    assert choose_mixture(["a", "b"], [1, 2], None, seed=0).tolist() == [0, 1]
