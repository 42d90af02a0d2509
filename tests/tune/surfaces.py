"""Objectives whose optimum is known, to try the rule of a sweep on.

Every loss is about 2 nats, and the optimum is a few per cent better than an even mix, as between real mixes; the noise
between seeds is 0.2 % of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ray_jobs.tune.beam import PlannedTrial, advance
from service.spec.sweep import SweepSpec
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


class Setting(NamedTuple):
    """A surface, and the mix that a sweep over it begins from."""

    surface: Surface
    base: dict[str, float]


def setting(
    name: str, num_categories: int, losses: Callable[[np.ndarray], np.ndarray], base: tuple[float, ...] | None = None
) -> Setting:
    surface = Surface(name, num_categories, losses)
    even = (1 / num_categories,) * num_categories
    return Setting(surface, dict(zip(surface.categories, base or even, strict=True)))


SETTINGS = (
    setting("bowl, 3 categories", 3, quadratic((0.55, 0.15, 0.3), (1.2, 2.2, 0.7))),
    setting("bowl, 4 categories", 4, quadratic((0.5, 0.1, 0.3, 0.1), (2.0, 4.0, 1.2, 3.0))),
    setting("edge, 3 categories", 3, quadratic((0.75, 0.25, 0.0), (0.8, 1.4, 0.5))),
    setting("corner, 4 categories", 4, quadratic((0.0, 1.0, 0.0, 0.0), (0.5, 0.9, 0.3, 0.6))),
    setting(
        "mixing law, 3 categories",
        3,
        mixing_law((1.1, 0.8, 1.4), (1.0, 2.4, 0.3), [[-5, -0.5, 0.1], [0.2, -5, -1.2], [-0.6, 0, -4]]),
        base=(0.45, 0.25, 0.3),
    ),
    setting(
        "mixing law, 4 categories",
        4,
        mixing_law(
            (1.2, 0.8, 1.5, 0.9),
            (0.5, 2.6, 0.3, 1.4),
            [[-6, -0.4, 0, 0.1], [0.1, -5, 0, -1.5], [-0.8, 0, -4, 0.2], [0, -1, 0.1, -6]],
        ),
        base=(0.4, 0.15, 0.3, 0.15),
    ),
)
"""None of them is among those that the rule's constants were chosen on, which were drawn at random."""


def worst_accepted(one: Setting) -> float:
    """Loss of a mix that is within 2 % of the best: it leaves at most 2 % of the way from the base mix to the best one.

    Of the way, and not of the loss itself, because that is stricter, and does not depend on what the loss would be at
    best.
    """
    shares_NK = np.array([list(one.base.values())])
    return 0.98 * one.surface.least() + 0.02 * float(one.surface.loss(shares_NK)[0])


def losses_of_random_search(one: Setting, num_trials: int, noise: float, luck: int) -> np.ndarray:
    """True loss of the mix with the least measured one after 1, 2 … trials at uniformly random mixes, [num_trials]."""
    rng = np.random.default_rng([luck, 1])
    shares_NK = rng.dirichlet(np.ones(one.surface.num_categories), size=num_trials)
    true_N = one.surface.loss(shares_NK)
    measured_N = true_N * (1 + noise * rng.normal(size=num_trials))
    is_best_N = measured_N == np.minimum.accumulate(measured_N)
    best_N = np.maximum.accumulate(np.where(is_best_N, np.arange(num_trials), 0))
    return np.asarray(true_N[best_N])


def losses_of_sweep(one: Setting, spec: SweepSpec, num_trials: int, noise: float, luck: int) -> np.ndarray:
    """True loss of the mix that a sweep holds for best after 1, 2 … trials, [num_trials].

    Infinite before the end of the first round; those of the base mix are counted.
    """
    found_N = np.full(num_trials, np.inf)
    ended: dict[str, Trial] = {}
    while True:
        step = advance(spec, one.base, ended)
        if step.results.best is not None:
            best = next(candidate for candidate in step.results.candidates if candidate.id == step.results.best)
            shares_K = np.array([(best.mixture or one.base)[name] for name in one.surface.categories])
            found_N[max(0, len(ended) - 1) :] = one.surface.loss(shares_K[None])[0]
        if step.is_finished or len(ended) >= num_trials:
            return found_N
        for planned in step.due:
            ended[planned.id] = ended_trial(one.surface, planned, one.base, noise, luck)


def trials_needed(losses_SN: np.ndarray, accepted: float) -> int | None:
    """After how many trials the median over seeds of the mix held for best is good enough; None if never."""
    reached = np.flatnonzero(np.median(losses_SN, axis=0) <= accepted)
    return int(reached[0]) + 1 if len(reached) else None
