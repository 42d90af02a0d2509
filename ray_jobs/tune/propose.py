"""Where the next candidates of a round lie: spread over the space, around the beams, or as another searcher says.

All is decided by the spec's seed, the stage and the round, so that a restarted sweep proposes the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from ray_jobs.tune.simplex import quasi_random
from ray_jobs.tune.space import Point, Space
from ray_jobs.tune.surrogate import Surrogate
from service.spec.sweep_results import CandidateRole

RADIUS = 0.25
"""Of the first round around beams: the share of the mix that a step moves from some categories to others. Eight points
spread over three or four categories lie 0.2 to 0.3 apart, so a step leads about to the next one."""
SHRINK = 0.7
"""By which each further round's radius is less. On the surfaces that the rule was tuned on, 0.6 came to a stop before
the optimum with four categories, where a round of 8 does not always hold a step downhill."""
_ATTEMPTS = 50
"""Points drawn for each that is wanted; in a space of a few points most have been tried before."""
_POOL = 500
"""Points of each kind among which the surrogate chooses: the simplex of four categories at a distance of about 0.1."""


class Proposal(NamedTuple):
    """A candidate to be."""

    point: Point
    role: CandidateRole
    parent: str | None = None
    left_out: str | None = None


class Beam(NamedTuple):
    """A candidate to search around."""

    id: str
    point: Point


def seeded(*numbers: int) -> int:
    """One seed of several numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def fresh(proposals: Iterable[Proposal], count: int, taken: Iterable[str]) -> list[Proposal]:
    """The first so many proposals whose points are neither taken nor proposed before."""
    seen = set(taken)

    def unseen() -> Iterator[Proposal]:
        for proposal in proposals:
            key = proposal.point.key
            if key not in seen:
                seen.add(key)
                yield proposal

    return list(islice(unseen(), count))


def spread(space: Space, count: int, seed: int) -> Iterator[Proposal]:
    """The corners, then points that cover the space evenly; more than `count` for those that are taken."""
    covering = space.from_cube(quasi_random(_ATTEMPTS * count, space.num_dimensions, seed))
    return chain(
        (Proposal(point, "corner") for point in space.corners()), (Proposal(point, "spread") for point in covering)
    )


def at_random(space: Space, count: int, seed: int) -> Iterator[Proposal]:
    """Independent points."""
    cube = np.random.default_rng(seed).random((_ATTEMPTS * count, space.num_dimensions))
    return (Proposal(point, "spread") for point in space.from_cube(cube))


def around(space: Space, beams: Sequence[Beam], radius: float, count: int, seed: int) -> Iterator[Proposal]:
    """The mean of the beams, then points around them: every other one around the best, the rest around the others.

    The mean is subject to less noise than any of them: what is best by luck lies to all sides of the optimum. Half to
    the best found the optimum in fewer trials than as much to each.
    """
    coordinates = [space.coordinates(beam.point) for beam in beams]
    if len(beams) > 1:
        yield Proposal(space.near(np.mean(coordinates, axis=0)), "neighbour", beams[0].id)
    steps = _steps(space, _ATTEMPTS * count, seed)
    for number, step_C in enumerate(steps):
        others = len(beams) - 1
        beam = 1 + (number // 2) % others if others and number % 2 else 0
        yield Proposal(space.near(coordinates[beam] + radius * step_C), "neighbour", beams[beam].id)


def _steps(space: Space, count: int, seed: int) -> np.ndarray:
    """Directions of unit length, spread evenly, [N, C]; shares move by 1/2 to 1 in all, axes by up to 1 each."""
    num_shares, num_axes = len(space.categories), len(space.fields)
    cube = quasi_random(count, num_shares + num_axes + 1, seed)
    normal = ndtri(np.clip(cube[:, :num_shares], 1e-9, 1 - 1e-9))  # a Sobol point may be 0
    normal -= normal.mean(axis=1, keepdims=True)
    moved = np.abs(normal).sum(axis=1, keepdims=True) / 2
    length = 0.5 + 0.5 * cube[:, -1:]
    shares = np.divide(normal, moved, out=np.zeros_like(normal), where=moved > 0) * length
    return np.hstack([shares, 2 * cube[:, num_shares : num_shares + num_axes] - 1])


def pool(space: Space, nearby: Iterable[Proposal], seed: int) -> list[Point]:
    """Among which the surrogate chooses: points all over the space and near the beams, each once."""
    proposals = chain(spread(space, _POOL // _ATTEMPTS, seed), nearby)
    return list({proposal.point.key: proposal.point for proposal in islice(proposals, 2 * _POOL)}.values())


def by_surrogate(space: Space, surrogate: Surrogate, among: Sequence[Point], count: int) -> Iterator[Proposal]:
    """Where the surrogate expects the greatest improvement, one after the other."""
    points = {point.key: point for point in among}
    coordinates = {key: space.coordinates(point) for key, point in points.items()}
    for _ in range(min(count, len(points))):
        keys = list(points)
        improvement = surrogate.expected_improvement(np.array([coordinates[key] for key in keys]))
        key = keys[int(improvement.argmax())]
        surrogate = surrogate.believing(coordinates[key])
        yield Proposal(points.pop(key), "surrogate")


class Outcome(NamedTuple):
    """How a candidate ended, for a searcher that learns from it.

    Attributes:
        score: its score; None if it has none.
        rung: last rung and score there, of a stopped one.
    """

    score: float | None = None
    rung: tuple[int, float] | None = None


def by_optuna(space: Space, rounds: Sequence[int], outcome: Callable[[Point], Outcome], seed: int) -> list[Proposal]:
    """What Optuna's tree-structured Parzen estimator asks for next (Bergstra et al. 2011), in rounds of so many.

    Its state is nothing but its seed and the trials told, so all rounds are asked and told again.

    Args:
        space: to search.
        rounds: how many to ask for in each round so far, and in the next.
        outcome: how a candidate of an earlier round ended.
        seed: of the sampler.

    Raises:
        ModuleNotFoundError: the package optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("searcher `optuna` needs the package: pip install 'sleddog[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # constant_liar keeps the candidates of a round, asked for before any is told, apart
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {f"x{n}": optuna.distributions.FloatDistribution(0, 1) for n in range(space.num_dimensions)}
    points: list[Point] = []
    for number, count in enumerate(rounds):
        trials = [study.ask(distributions) for _ in range(count)]
        cube = np.array([[trial.params[name] for name in distributions] for trial in trials])
        points = list(space.from_cube(cube.reshape(count, space.num_dimensions)))
        if number + 1 == len(rounds):
            break
        for trial, point in zip(trials, points, strict=True):
            ended = outcome(point)
            if ended.rung is not None:
                trial.report(ended.rung[1], ended.rung[0])
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            elif ended.score is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, ended.score)
    return [Proposal(point, "spread") for point in points]
