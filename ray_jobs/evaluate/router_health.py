"""Health of the routers on the held-out rows: how evenly experts are used, by what, and how far from the base model.

    evals/base-routing.npz       copies and kept choices before the first step: what later ones are compared with
    evals/<when>-routing.json    all figures, by category, layer and expert

The base's file is written once, by the evaluation before the first step, and read by every later one, in whatever
process and on however many workers. What each figure means is told in docs/routing.md.

Shapes: T tokens of a row, K experts a token, C categories, L layers, E experts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_jobs.evaluate.routing_record import HeldOutRouting, KeptRow
from ray_jobs.run_directory import RunDirectory, write_file
from ray_jobs.train.expert_load import effective_experts, loads, max_over_mean

ROUTING_FILE = "evals/{when}-routing.json"
BASE_FILE = "evals/base-routing.npz"
_TOP_EXPERTS = 3
_LAYERS_SHOWN = 3
_BY_LAYER = ("effective_experts", "max_over_mean", "unused_experts", "load_drift", "same_experts")


def write_router_health(
    run: RunDirectory, routing: HeldOutRouting, categories: Sequence[str], *, when: str, step: int
) -> dict[str, Any]:
    """Judge the routers and write it down; writing it again, after a restart, writes the same.

    Args:
        run: the run directory.
        routing: of all held-out rows.
        categories: names, in the order of their indices.
        when: `before`, `step-<n>` or `after`; the first is what the others are compared with.
        step: optimiser steps done.

    Returns:
        The summary, as the event `eval.routing` has it.
    """
    base = None
    if when == "before":
        write_file(run.join(BASE_FILE), to_bytes(routing))
    elif (content := run.read_bytes(BASE_FILE)) is not None:
        base = from_bytes(content)
    figures = router_health(routing, base, categories)
    name = ROUTING_FILE.format(when=when)
    summary = {"when": when, "step": step, "path": name, **summarise(figures)}
    run.write_json(name, {"summary": summary, **figures})
    return summary


def read_summaries(run: RunDirectory, whens: Sequence[str]) -> list[dict[str, Any]]:
    """What was written, in order of `whens`."""
    documents = [run.read_json(ROUTING_FILE.format(when=when)) for when in whens]
    return [document["summary"] for document in documents if document is not None]


def to_bytes(routing: HeldOutRouting) -> bytes:
    """As a file: `copies` [C, L, E], and for each kept row `experts-<number>` and `categories-<number>`."""
    arrays = {"copies": routing.copies_CLE.numpy()}
    for number, row in routing.rows.items():
        arrays |= {f"experts-{number}": row.experts_LTK, f"categories-{number}": row.categories_T}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def from_bytes(content: bytes) -> HeldOutRouting:
    """What `to_bytes` made a file of."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        numbers = [int(name.removeprefix("experts-")) for name in file.files if name.startswith("experts-")]
        rows = {number: KeptRow(file[f"experts-{number}"], file[f"categories-{number}"]) for number in numbers}
        return HeldOutRouting(torch.from_numpy(file["copies"]), rows)


def router_health(routing: HeldOutRouting, base: HeldOutRouting | None, categories: Sequence[str]) -> dict[str, Any]:
    """All figures, as plain values; a category without tokens has none.

    Args:
        routing: of the rows.
        base: of the same rows by the base model; None when there is nothing to compare with.
        categories: names, in the order of their indices.
    """
    present = [index for index, copies in enumerate(routing.copies_CLE.sum((1, 2)).tolist()) if copies]
    copies_CLE = routing.copies_CLE[present]
    base_CLE = None if base is None else base.copies_CLE[present]
    same_CL = None if base is None else same_choices(routing, base)[present]
    top = _top_experts(copies_CLE) if len(present) > 1 else {}
    num_copies_C = copies_CLE.sum(2)[:, 0].tolist()
    by_category = {
        categories[index]: {
            "copies": num_copies_C[place],
            **_by_layer(copies_CLE[place], None if base_CLE is None else base_CLE[place]),
            "same_experts": None if same_CL is None else _share(same_CL[place]),
            "top_experts": top.get(place),
            "copies_per_layer_and_expert": copies_CLE[place].tolist(),
        }
        for place, index in enumerate(present)
    }
    together = _by_layer(copies_CLE.sum(0), None if base_CLE is None else base_CLE.sum(0)) if present else {}
    return {
        "num_experts": copies_CLE.shape[2],
        "categories": by_category,
        "together": together | {"same_experts": None if same_CL is None else _share(same_CL.sum(0))},
        "specialisation": specialisation(copies_CLE).tolist() if len(present) > 1 else None,
        "specialisation_by_chance": specialisation_by_chance(copies_CLE) if len(present) > 1 else None,
    }


def _by_layer(copies_LE: Tensor, base_LE: Tensor | None) -> dict[str, Any]:
    drift_L = None if base_LE is None else 0.5 * (loads(copies_LE) - loads(base_LE)).abs().sum(-1)
    return {
        "effective_experts": effective_experts(copies_LE).tolist(),
        "max_over_mean": max_over_mean(copies_LE).tolist(),
        "unused_experts": (copies_LE == 0).sum(-1).tolist(),
        "load_drift": None if drift_L is None else drift_L.tolist(),
    }


def same_choices(routing: HeldOutRouting, base: HeldOutRouting) -> Tensor:
    """Of the kept rows' copies: [C, L, 2] counts of those whose expert was among the base's K, and of all.

    The order among a token's K experts does not count: the same experts serve it.
    """
    num_categories, num_layers, _ = routing.copies_CLE.shape
    counts_CL2 = np.zeros((num_categories, num_layers, 2), dtype=np.int64)
    for number, row in routing.rows.items():
        then_LTK = base.rows[number].experts_LTK
        same_LT = (row.experts_LTK[..., :, None] == then_LTK[..., None, :]).any(-1).sum(-1)
        counts_LT2 = np.stack([same_LT, np.full_like(same_LT, then_LTK.shape[2])], -1)
        np.add.at(counts_CL2, row.categories_T, counts_LT2.transpose(1, 0, 2))
    return torch.from_numpy(counts_CL2)


def _share(counts_L2: Tensor) -> list[float] | None:
    """Same of all; None where no kept row has any."""
    same_L, all_L = counts_L2.double().unbind(1)
    return (same_L / all_L).tolist() if all_L.all() else None


def specialisation(copies_CLE: Tensor) -> Tensor:
    """How much a copy's expert tells of its category, if all categories were equally frequent: [L], 0 to 1.

    The mutual information of category and expert, over its largest value, ln C: 0 when all categories have the same
    load, 1 when no two of them share an expert. C is at least 2, and each has copies.
    """
    return _information(loads(copies_CLE)).sum((0, 2)) / math.log(len(copies_CLE))


def _information(loads_CLE: Tensor) -> Tensor:
    """Nats of mutual information by category, layer and expert; they add up to it."""
    mean_LE = loads_CLE.mean(0)
    nats_CLE: Tensor = torch.xlogy(loads_CLE, loads_CLE) - torch.xlogy(loads_CLE, mean_LE)
    return nats_CLE / len(loads_CLE)


def specialisation_by_chance(copies_CLE: Tensor) -> float:
    """What `specialisation` is on average where all categories draw from one even load, each copy by itself.

    An entropy of E shares, measured on n draws, is too small by (E - 1) / 2n nats to first order (Miller and Madow).
    The entropy of the mean load, whose shares vary 1 / C^2 times the sum of the categories' 1 / n, by as much less.
    """
    num_categories, _, num_experts = copies_CLE.shape
    draws_C = copies_CLE[:, 0].sum(1).double()
    nats = (num_experts - 1) / 2 * float((1 / draws_C).sum()) * (1 / num_categories - 1 / num_categories**2)
    return nats / math.log(num_categories)


def _top_experts(copies_CLE: Tensor) -> dict[int, list[list[dict[str, Any]]]]:
    """By category and layer the experts that tell most of the category: high in share and in lift."""
    loads_CLE = loads(copies_CLE)
    lift_CLE = loads_CLE / loads_CLE.mean(0)
    best_CLN = _information(loads_CLE).topk(min(_TOP_EXPERTS, copies_CLE.shape[2]), -1).indices
    return {
        category: [
            [
                {"expert": expert, "share": float(loads_CLE[category, layer, expert]), "lift": lift}
                for expert in best_LN
                if (lift := float(lift_CLE[category, layer, expert])) > 1
            ]
            for layer, best_LN in enumerate(best_CLN[category].tolist())
        ]
        for category in range(len(copies_CLE))
    }


def summarise(figures: dict[str, Any]) -> dict[str, Any]:
    """Of each category means over the layers, of each layer all categories together, and the most specialised layers.

    Args:
        figures: from `router_health`.
    """
    specialised = figures["specialisation"] or []
    layers = sorted(range(len(specialised)), key=lambda layer: -specialised[layer])[:_LAYERS_SHOWN]
    return {
        "num_experts": figures["num_experts"],
        "categories": {
            name: {"copies": line["copies"], **{key: _mean(line[key]) for key in _BY_LAYER}}
            for name, line in figures["categories"].items()
        },
        "layers": figures["together"] | {"specialisation": figures["specialisation"]},
        "specialisation_by_chance": figures["specialisation_by_chance"],
        "most_specialised": [
            {
                "layer": layer,
                "specialisation": specialised[layer],
                "experts": {name: line["top_experts"][layer] for name, line in figures["categories"].items()},
            }
            for layer in layers
        ],
    }


def _mean(values: list[float] | None) -> float | None:
    return None if values is None else sum(values) / len(values)
