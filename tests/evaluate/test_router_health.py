"""Who serves what, how evenly, and how far from the base model: counted on the pass that measures the held-out loss."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from moe.router import Router
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.evaluate.held_out import measure_held_out
from ray_jobs.evaluate.router_health import (
    BASE_FILE,
    from_bytes,
    read_summaries,
    router_health,
    same_choices,
    specialisation,
    specialisation_by_chance,
    summarise,
    to_bytes,
    write_router_health,
)
from ray_jobs.evaluate.routing_record import HeldOutRouting, KeptRow, RoutingRecord
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.batches import collate
from ray_jobs.train.engine import TrainingStep
from ray_jobs.train.pinned_routing import recorded_routing
from tests.moe.conftest import TINY, tiny_model

CATEGORIES = ["code", "none", "math"]


def rows_of(*documents: list[tuple[int, str]]) -> list[PackedRow]:
    """Rows of documents of these lengths and categories; tokens at random."""
    rng, rows = np.random.default_rng(0), []
    for row in documents:
        lengths = np.array([length for length, _ in row], dtype=np.int32)
        tokens = rng.integers(0, TINY.vocab_size, lengths.sum()).astype(np.int32)
        trained = np.arange(len(tokens)) % 2 == 1
        trained[np.cumsum(lengths) - lengths] = False
        rows.append(PackedRow(tokens, trained, lengths, tuple(category for _, category in row)))
    return rows


ROWS = rows_of([(5, "code"), (9, "math")], [(3, "math")], [(7, "code"), (2, "code"), (4, "math")])


def measured(monkeypatch: pytest.MonkeyPatch, step: TrainingStep, rows: list[PackedRow]) -> HeldOutRouting:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    return measure_held_out(step, rows, CATEGORIES)[1]  # type: ignore[arg-type]


def test_every_token_is_counted_in_its_category_on_the_only_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = TrainingStep(tiny_model(), 0.01, 3), []
    for layer, module in enumerate(module for module in step.modules() if isinstance(module, Router)):
        module.register_forward_hook(
            lambda _module, _inputs, routing, layer=layer: seen.append((layer, routing.experts_TK.tolist()))
        )
    routing = measured(monkeypatch, step, ROWS)
    assert len(seen) == TINY.num_layers * len(ROWS)
    expected: Counter[tuple[int, int, int]] = Counter()
    kept = {}
    for number, (row, calls) in enumerate(zip(ROWS, zip(*[iter(seen)] * TINY.num_layers, strict=True), strict=True)):
        names = [name for name, n in zip(row.document_categories, row.document_lengths, strict=True) for _ in range(n)]
        for layer, experts_TK in calls:
            for name, experts in zip(names, experts_TK, strict=True):
                expected.update((CATEGORIES.index(name), layer, expert) for expert in experts)
        kept[number] = [experts_TK for _, experts_TK in calls]
    shape = (len(CATEGORIES), TINY.num_layers, TINY.num_experts)
    assert routing.copies_CLE.tolist() == [
        [[expected[c, layer, e] for e in range(shape[2])] for layer in range(shape[1])] for c in range(shape[0])
    ]
    assert {number: row.experts_LTK.tolist() for number, row in routing.rows.items()} == kept


def recorded(rank: int, num_workers: int, rows: list[PackedRow]) -> RoutingRecord:
    """What one of several workers notes, stand-ins for want of rows included."""
    step = TrainingStep(tiny_model(), 0.01, 3)
    record = RoutingRecord(step.model, 3, len(rows))
    for index in range(rank, num_workers * math.ceil(len(rows) / num_workers), num_workers):
        batch = collate([rows[index] if index < len(rows) else None], CATEGORIES, "cpu")
        with torch.no_grad(), recorded_routing(step.model) as choices:
            step(batch, 1.0, 1.0)
        record.add(index, batch, choices)
    return record


def test_what_is_noted_does_not_depend_on_the_workers() -> None:
    alone = recorded(0, 1, ROWS).gather()
    shares = [recorded(rank, 2, ROWS).gather() for rank in range(2)]
    assert torch.equal(sum(share.copies_CLE for share in shares), alone.copies_CLE)  # type: ignore[arg-type]
    rows = {number: row for share in shares for number, row in share.rows.items()}
    assert rows.keys() == alone.rows.keys()
    assert all(np.array_equal(rows[number].experts_LTK, row.experts_LTK) for number, row in alone.rows.items())


def test_what_is_kept_is_bounded_and_spread_over_the_rows() -> None:
    num_rows = 1000
    record = RoutingRecord(tiny_model(), 3, num_rows)
    tokens = 5000
    choices = [torch.zeros(tokens, 2, dtype=torch.int64)] * TINY.num_layers
    batch = collate(rows_of([(tokens, "code")]), CATEGORIES, "cpu")
    for row in (*range(0, num_rows, 16), 1, 999):
        record.add(row, batch, choices)
    routing = record.gather()
    assert list(routing.rows) == list(range(0, num_rows, 16))
    assert len(routing.rows) <= 64
    assert {row.experts_LTK.nbytes for row in routing.rows.values()} == {TINY.num_layers * 4096 * 2}
    assert routing.copies_CLE[0, 0, 0] == 2 * tokens * 65, "what is not kept is counted"


def held_out_routing(copies_CLE: list[Any], rows: dict[int, KeptRow] | None = None) -> HeldOutRouting:
    return HeldOutRouting(torch.tensor(copies_CLE), rows or {})


def test_figures_are_the_hand_counted_ones() -> None:
    now = held_out_routing([[[6, 2, 0, 0]], [[0, 0, 0, 0]], [[2, 2, 2, 2]]])
    base = held_out_routing([[[2, 2, 2, 2]], [[0, 0, 0, 0]], [[2, 2, 2, 2]]])
    figures = router_health(now, base, CATEGORIES)
    assert list(figures["categories"]) == ["code", "math"], "a category without tokens has no figures"
    code, math_ = figures["categories"]["code"], figures["categories"]["math"]
    assert (code["copies"], code["max_over_mean"], code["unused_experts"], code["load_drift"]) == (8, [3], [2], [0.5])
    assert code["effective_experts"] == pytest.approx([4 / 3**0.75])
    assert (math_["max_over_mean"], math_["unused_experts"], math_["load_drift"]) == ([1], [0], [0])
    assert code["same_experts"] is None, "no row was kept"
    # code's loads 3/4, 1/4; math's 1/4 each; the mean's 1/2, 1/4, 1/8, 1/8
    assert code["top_experts"] == [[{"expert": 0, "share": 0.75, "lift": 1.5}]]
    assert [(top["expert"], top["lift"]) for top in math_["top_experts"][0]] == [(2, 2), (3, 2)]
    assert figures["together"]["load_drift"] == [0.25]
    assert figures["together"]["max_over_mean"] == [2]
    bits = (0.75 * math.log2(1.5) + 0.25 * math.log2(0.5) + 2 * 0.25) / 2
    assert figures["specialisation"] == pytest.approx([bits])
    summary = summarise(figures)
    assert summary["categories"]["code"]["load_drift"] == 0.5
    assert [line["layer"] for line in summary["most_specialised"]] == [0]
    assert "copies_per_layer_and_expert" not in json.dumps(summary)


def test_without_a_base_or_a_second_category_there_is_nothing_to_compare() -> None:
    figures = router_health(held_out_routing([[[6, 2]], [[0, 0]], [[0, 0]]]), None, CATEGORIES)
    assert figures["categories"]["code"]["load_drift"] is None
    assert figures["specialisation"] is figures["specialisation_by_chance"] is None
    assert summarise(figures)["most_specialised"] == []
    nothing = router_health(held_out_routing([[[0, 0]]] * 3), None, CATEGORIES)
    assert (nothing["categories"], summarise(nothing)["categories"]) == ({}, {})


def test_specialisation_goes_from_the_same_load_to_experts_of_their_own() -> None:
    same_E, one_E, other_E = [3, 1, 2, 2], [5, 5, 0, 0], [0, 0, 9, 1]
    copies_CLE = torch.tensor([[same_E, one_E, one_E], [[2 * n for n in same_E], other_E, one_E]])
    assert specialisation(copies_CLE).tolist() == pytest.approx([0, 1, 0], abs=1e-12)


def test_specialisation_is_the_mutual_information_if_categories_were_equally_frequent() -> None:
    copies_CLE = torch.tensor([[[1, 7, 0]], [[50, 20, 30]], [[9, 9, 2]]])
    joint = [[share / 3 for share in (copies[0].double() / copies.sum()).tolist()] for copies in copies_CLE]
    experts = [sum(row[expert] for row in joint) for expert in range(3)]
    information = sum(p * math.log(p / (experts[expert] / 3)) for row in joint for expert, p in enumerate(row) if p > 0)
    assert specialisation(copies_CLE).item() == pytest.approx(information / math.log(3))


def test_by_chance_specialisation_is_what_draws_from_one_load_show() -> None:
    """Over 4000 draws the mean is within 4 of its standard errors, and within the terms that the formula leaves out.

    Those are of the order (E / n)^2 beside (E - 1) / n: with 16 experts and 400 draws at the least, 4 % of it.
    """
    rng, num_experts = np.random.default_rng(0), 16
    draws = [rng.multinomial(n, [1 / num_experts] * num_experts, size=4000) for n in (400, 1600, 6400)]
    copies_CLE = torch.from_numpy(np.stack(draws))
    shown_L = specialisation(copies_CLE)
    standard_error = float(shown_L.std() / math.sqrt(len(shown_L)))
    expected = specialisation_by_chance(copies_CLE)
    assert abs(float(shown_L.mean()) - expected) < 4 * standard_error + 0.04 * expected
    assert standard_error < 0.01 * expected


def kept(experts_TK: Sequence[Sequence[int]], categories: Sequence[int]) -> KeptRow:
    return KeptRow(np.array([experts_TK], dtype=np.uint8), np.array(categories))


def test_an_even_load_may_hide_that_every_token_has_moved() -> None:
    copies = [[[2, 2, 2, 2]], [[0] * 4], [[2, 2, 2, 2]]]
    base = held_out_routing(copies, {0: kept([(0, 1), (0, 1), (2, 3), (2, 3)], [0] * 4)})
    moved = held_out_routing(copies, {0: kept([(2, 3), (2, 3), (0, 1), (0, 1)], [0] * 4)})
    code = router_health(moved, base, CATEGORIES)["categories"]["code"]
    assert (code["load_drift"], code["same_experts"]) == ([0], [0])


def test_the_same_experts_in_another_order_are_the_same() -> None:
    copies = [[[1] * 4], [[0] * 4], [[1] * 4]]
    base = held_out_routing(copies, {3: kept([(0, 1), (2, 3), (0, 3)], [0, 2, 2])})
    now = held_out_routing(copies, {3: kept([(1, 0), (2, 1), (2, 1)], [0, 2, 2])})
    assert same_choices(now, base).tolist() == [[[2, 2]], [[0, 0]], [[1, 4]]]
    figures = router_health(now, base, CATEGORIES)
    assert figures["categories"]["code"]["same_experts"] == [1]
    assert figures["categories"]["math"]["same_experts"] == [0.25]
    assert figures["together"]["same_experts"] == [0.5]


def test_files_say_the_same_however_often_they_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, step = RunDirectory(str(tmp_path)), TrainingStep(tiny_model(), 0.01, 3)
    first = measured(monkeypatch, step, ROWS)
    read = from_bytes(to_bytes(first))
    assert torch.equal(read.copies_CLE, first.copies_CLE)
    assert same_choices(read, first).equal(same_choices(first, first))

    def write(when: str, routing: HeldOutRouting) -> dict[str, bytes]:
        write_router_health(run, routing, CATEGORIES, when=when, step=0)
        return {path.name: path.read_bytes() for path in (tmp_path / "evals").iterdir()}

    assert write("before", first) == write("before", first)
    with torch.no_grad():
        step.model.layers[1].block_sparse_moe.router.gate.weight.neg_()
    trained = measured(monkeypatch, step, ROWS)
    assert write("after", trained) == write("after", trained)
    before, after = read_summaries(run, ["before", "step-7", "after"])
    assert (before["when"], after["when"]) == ("before", "after")
    assert before["layers"]["load_drift"] is None
    assert after["layers"]["same_experts"][0] == 1, "below the layer that was changed"
    assert after["layers"]["same_experts"][1] < 0.5
    assert after["layers"]["load_drift"][1] > after["layers"]["load_drift"][0] == 0
    (tmp_path / BASE_FILE).unlink()
    assert write_router_health(run, trained, CATEGORIES, when="after", step=0)["layers"]["same_experts"] is None
