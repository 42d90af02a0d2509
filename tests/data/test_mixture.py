"""Held-out split and mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.mixture import Candidates, Mixture, choose_mixture, held_out, within_cap
from service.spec.mixture import CategoryShare


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


def choose(
    categories: Sequence[str],
    sizes: Sequence[int],
    shares: Mapping[str, Any] | None,
    seed: int = 0,
    sources: Sequence[int] | None = None,
    weights: Sequence[float] = (1,),
    epochs: Sequence[float | None] = (None,),
) -> Mixture:
    """The mixture of rows that all come from one source, unless told otherwise; a share may be a number."""
    source = np.zeros(len(categories), dtype=np.int64) if sources is None else np.array(sources)
    specs = {
        name: CategoryShare.model_validate(share if isinstance(share, dict) else {"share": share})
        for name, share in (shares or {}).items()
    }
    candidates = Candidates(np.array(categories), source, np.array(sizes))
    return choose_mixture(candidates, specs if shares is not None else None, weights, epochs, seed)


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_of_tokens_and_the_scarcest_category_is_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    categories = rng.permutation(["code"] * 3000 + ["math"] * 1000 + ["who"] * 500)
    tokens = rng.integers(1, 200, len(categories))
    shares = {"code": 2.0, "math": 1.0, "who": 1.0}
    chosen, stopped_by = choose(categories.tolist(), tokens.tolist(), shares, seed)
    assert (np.diff(chosen) > 0).all(), "in order, none twice"
    got = {name: tokens[chosen][categories[chosen] == name].sum() for name in shares}
    assert got["who"] == tokens[categories == "who"].sum()
    for name, share in shares.items():
        assert 0 <= got["who"] * share - got[name] < 200, "short by less than one conversation"
    assert stopped_by == {"code": "share", "math": "share", "who": "supply"}


def test_the_choice_depends_on_the_seed_and_nothing_else() -> None:
    categories, tokens, shares = ["a", "b"] * 50, [5] * 100, {"a": 0.8, "b": 0.2}
    first = choose(categories, tokens, shares, seed=1).chosen
    assert (choose(categories, tokens, shares, seed=1).chosen == first).all()
    assert set(choose(categories, tokens, shares, seed=2).chosen) != set(first)
    known = [1, 9, 13, 19, 29, 33, 49, 55, 75, 79, 87, 97]
    assert [index for index in first if index % 2] == known, "the same on every machine, and in every version"


def test_without_shares_everything_is_taken_as_often_as_its_source_says() -> None:
    assert choose(["a", "b"], [1, 2], None).chosen.tolist() == [0, 1]
    sources = [0, 0, 1, 1, 2, 2, 2, 2]
    chosen = choose(["a"] * 8, [1] * 8, None, sources=sources, weights=[1, 1, 1], epochs=[None, 2, 0.5]).chosen
    times = np.bincount(chosen, minlength=8)
    assert times[:4].tolist() == [1, 1, 2, 2]
    assert sorted(times[4:]) == [0, 0, 1, 1]


def test_a_scarce_category_is_repeated_before_it_holds_the_others_back() -> None:
    categories = ["a"] * 10 + ["b"] * 100
    assert len(choose(categories, [1] * 110, {"a": 1, "b": 1}).chosen) == 20
    mixture = choose(categories, [1] * 110, {"a": {"share": 1, "max_epochs": 2.5}, "b": 1})
    times = np.bincount(mixture.chosen, minlength=110)
    assert sorted(times[:10]) == [2] * 5 + [3] * 5
    assert (times[10:].sum(), times[10:].max()) == (25, 1)
    assert mixture.stopped_by == {"a": "supply", "b": "share"}


def test_repetition_is_allowed_and_not_done_without_need() -> None:
    chosen = choose(["a"] * 10 + ["b"] * 6, [1] * 16, {"a": {"share": 1, "max_epochs": 9}, "b": 1}).chosen
    times = np.bincount(chosen, minlength=16)
    assert (times[:10].sum(), times[:10].max()) == (6, 1)


def test_a_source_says_more_of_its_repetition_than_its_category() -> None:
    shares = {"a": {"share": 1, "max_epochs": 3}, "b": 1}
    sources = [0] * 4 + [1] * 4 + [2] * 90
    chosen = choose(["a"] * 8 + ["b"] * 90, [1] * 98, shares, 0, sources, [1, 1, 1], [None, 1, None]).chosen
    assert np.bincount(chosen, minlength=98)[:8].tolist() == [3] * 4 + [1] * 4


def test_a_cap_holds_its_category_and_not_the_others() -> None:
    shares: dict[str, Any] = {"a": {"share": 1, "cap": 7}, "b": 1}
    mixture = choose(["a"] * 50 + ["b"] * 90, [2] * 140, shares)
    times = np.bincount(mixture.chosen, minlength=140)
    assert (times[:50].sum(), times[50:].sum()) == (3, 50), "3 of 2 tokens fit 7"
    assert mixture.stopped_by == {"a": "cap", "b": "share"}


def test_a_weight_brings_a_source_up_sooner() -> None:
    sources = [0, 1] * 3000
    chosen = choose(
        ["a"] * 6000 + ["b"] * 1000, [1] * 7000, {"a": 1, "b": 1}, 5, sources + [2] * 1000, [3, 1, 1], [None] * 3
    )
    heavy, light = (sum(index % 2 == odd for index in chosen.chosen if index < 6000) for odd in (0, 1))
    assert heavy + light == 1000
    assert 2.4 < heavy / light < 3.6, "three to one while both are plentiful; 5 standard deviations"


@st.composite
def mixes(draw: st.DrawFn) -> dict[str, Any]:
    num_rows = draw(st.integers(2, 60))
    owner = draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows))
    names = ["ab"[source % 2] for source in owner]
    share = st.fixed_dictionaries(
        {"share": st.floats(0.01, 100), "max_epochs": st.floats(1, 4), "cap": st.none() | st.integers(1, 500)}
    )
    return {
        "categories": names,
        "sizes": draw(st.lists(st.integers(1, 50), min_size=num_rows, max_size=num_rows)),
        "shares": {name: draw(share) for name in set(names)},
        "seed": draw(st.integers(0, 2**32 - 1)),
        "sources": owner,
        "weights": draw(st.lists(st.floats(0.01, 100), min_size=4, max_size=4)),
        "epochs": draw(st.lists(st.none() | st.floats(0.01, 4), min_size=4, max_size=4)),
    }


@given(mixes())
@settings(max_examples=150, deadline=None, database=None)
def test_every_mixture_keeps_its_promises(mix: dict[str, Any]) -> None:
    chosen, stopped_by = choose(**mix)
    assert (choose(**mix).chosen == chosen).all()
    assert (np.diff(chosen) >= 0).all()
    times, sizes = np.bincount(chosen, minlength=len(mix["sizes"])), np.array(mix["sizes"])
    names, sources = np.array(mix["categories"]), np.array(mix["sources"])
    amounts = {name: int((times * sizes)[names == name].sum()) for name in mix["shares"]}
    for name, share in mix["shares"].items():
        limits = np.array([share["max_epochs"] if own is None else own for own in mix["epochs"]])[sources]
        mine = names == name
        assert (times[mine] <= np.ceil(limits[mine])).all(), "none more often than it may"
        for source in set(sources[mine]):
            of_source = mine & (sources == source)
            assert np.ptp(times[of_source]) <= 1, "none again before all others"
            most = np.floor(limits[of_source][0]) * of_source.sum()
            most += np.ceil(np.modf(limits[of_source][0])[0] * of_source.sum())
            assert times[of_source].sum() <= most, "a fraction is of the source's conversations"
            if stopped_by[name] == "supply":
                assert times[of_source].sum() >= most - 1, "up to rounding"
        if share["cap"] is not None:
            assert amounts[name] <= share["cap"]
    uncapped = [name for name in amounts if stopped_by[name] != "cap"]
    units = {name: amounts[name] / mix["shares"][name]["share"] for name in uncapped}
    for name in uncapped:
        short = max(units.values()) * mix["shares"][name]["share"] - amounts[name]
        assert short < sizes[names == name].max() + 1e-6 * amounts[name] + 1e-6, "proportions up to one conversation"


def test_a_category_of_share_0_is_left_out() -> None:
    mixture = choose(["a", "b", "a", "c"], [5, 1, 5, 10], {"a": 1, "b": 0, "c": 1, "gone": 0})
    assert mixture.chosen.tolist() == [0, 2, 3], "and sets no limit, however scarce it is"
    assert mixture.stopped_by["b"] == "share"
