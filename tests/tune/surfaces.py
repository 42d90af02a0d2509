"""Objectives whose optimum is known, to try the rule of a sweep on.

Every loss is about 2 nats, and the optimum is a few per cent better than an even mix, as between real mixes; the noise
between seeds is 0.2 % of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ray_jobs.tune.beam import PlannedTrial
from service.spec.sweep_results import Trial

CATEGORIES = ("chat", "code", "general", "math")


class Surface(NamedTuple):
    """Losses over the mixes."""

    name: str
    num_categories: int
    losses: Callable[[np.ndarray], np.ndarray]
    """From shares [N, K] to losses [N, number of losses]; the objective is their mean."""

    @property
    def categories(self) -> tuple[str, ...]:
        return CATEGORIES[: self.num_categories]

    def loss(self, shares_NK: np.ndarray) -> np.ndarray:
        """Mean over the categories, [N]."""
        return self.losses(shares_NK).mean(axis=1)

    def least(self) -> float:
        """Least loss of all mixes: a lattice, then ever finer ones around its best."""
        parts = 40
        cube = np.stack(np.meshgrid(*[np.arange(parts + 1)] * (self.num_categories - 1)), axis=-1)
        some_NK = cube.reshape(-1, self.num_categories - 1) / parts
        shares_NK = np.column_stack([some_NK, 1 - some_NK.sum(axis=1)])
        shares_NK = shares_NK[shares_NK[:, -1] >= -1e-12]
        rng = np.random.default_rng(0)
        for scale in (0.02, 0.005, 0.001):
            best_K = shares_NK[self.loss(shares_NK).argmin()]
            near_NK = np.maximum(best_K + scale * rng.normal(size=(500, self.num_categories)), 0)
            shares_NK = np.vstack([best_K, near_NK / near_NK.sum(axis=1, keepdims=True)])
        return float(self.loss(shares_NK).min())


def quadratic(optimum: tuple[float, ...], curvature: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """2 nats at the optimum; each share's distance costs its own curvature times its square."""

    def losses(shares_NK: np.ndarray) -> np.ndarray:
        values_N = 2 + (np.array(curvature) * (shares_NK - np.array(optimum)) ** 2).sum(axis=1)
        return values_N[:, None]

    return losses


def mixing_law(floor: tuple[float, ...], scale: tuple[float, ...], transfer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Data-mixing law (Ye et al. 2024): the loss of category i is floor_i + scale_i exp(sum_j transfer_ij share_j)."""

    def losses(shares_NK: np.ndarray) -> np.ndarray:
        return np.array(floor) + np.array(scale) * np.exp(shares_NK @ np.array(transfer).T)

    return losses


def document(surface: Surface, base: Mapping[str, float], **sweep: Any) -> dict[str, Any]:
    """A sweep over a surface, from a base mix."""
    sources = [
        {"name": name, "category": name, "form": "prompt_completion", "uri": f"file:///{name}.jsonl"} for name in base
    ]
    job = {
        "name": "surface",
        "model": {
            "base": {"kind": "preset", "name": "quickstart"},
            "tokenizer": {"kind": "train_bpe", "vocab_size": 320},
        },
        "data": {
            "sources": sources,
            "sequence_length": 64,
            "held_out_fraction": 0.1,
            "mixture": {name: {"share": share} for name, share in base.items()},
        },
        "parallel": {"num_workers": 1, "accelerator": "cpu"},
    }
    return {"name": "surface", "base": job, "stages": [{"name": "proxy", "max_steps": 10}]} | sweep


def ended_trial(surface: Surface, planned: PlannedTrial, base: Mapping[str, float], noise: float, luck: int) -> Trial:
    """A trial as it would end, with noise that is normal, and the same for the same mix and seed.

    Args:
        surface: of the losses.
        planned: what ran.
        base: mix of a trial that has none of its own.
        noise: standard deviation of the loss, as a share of it.
        luck: of the whole sweep.
    """
    mixture = planned.mixture or base
    shares_K = np.array([mixture[name] for name in surface.categories])
    rng = np.random.default_rng([luck, planned.seed, *(shares_K * 1e6).astype(int).tolist()])
    loss = float(surface.loss(shares_K[None])[0] * (1 + noise * rng.normal()))
    return Trial(
        id=planned.id,
        candidate=planned.candidate,
        stage=planned.stage,
        seed=planned.seed,
        status="succeeded",
        metrics={"held_out_loss": loss},
        worker_seconds=1.0,
    )
