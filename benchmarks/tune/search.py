"""Trials that each searcher needs to come within 2 % of the best mix, on surfaces whose optimum is known.

A searcher needs so many trials as it takes until the mix it holds for best leaves at most 2 % of the way from the base
mix to the best one, in true loss, in the median over seeds. Trials of the base mix count; random search alone has none.

    python benchmarks/tune/search.py --seeds 50
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from service.spec.sweep import SweepSpec
from tests.tune.surfaces import (
    SETTINGS,
    Setting,
    document,
    losses_of_random_search,
    losses_of_sweep,
    trials_needed,
    worst_accepted,
)

SEARCHERS: dict[str, dict[str, Any]] = {
    "beam": {},
    "beam + surrogate": {"surrogate": {"share": 0.5}},
    "random": {"searcher": "random"},
    "grid": {"searcher": "grid"},
    "optuna": {"searcher": "optuna"},
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=100, help="at most, of every searcher but plain random search")
    parser.add_argument("--noise", type=float, default=0.002, help="of the loss between seeds, as a share of it")
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    arguments = parser.parse_args()
    print(f"| surface | random, alone | {' | '.join(arguments.searchers)} |")
    print(f"| --- | --- |{' --- |' * len(arguments.searchers)}")
    for one in SETTINGS:
        seeds = range(arguments.seeds)
        alone_SN = np.array([losses_of_random_search(one, 1000, arguments.noise, luck) for luck in seeds])
        cells = [shown(one, alone_SN)]
        for name in arguments.searchers:
            found = [
                losses_of_sweep(one, spec(one, name, luck), arguments.trials, arguments.noise, luck) for luck in seeds
            ]
            cells.append(shown(one, np.array(found)))
        print(f"| {one.surface.name} | {' | '.join(cells)} |", flush=True)


def spec(one: Setting, searcher: str, seed: int) -> SweepSpec:
    """One stage of up to 13 rounds of 8."""
    stage = {"name": "proxy", "max_steps": 10, "rounds": 13}
    return SweepSpec.model_validate(document(one.surface, one.base, stages=[stage], seed=seed, **SEARCHERS[searcher]))


def shown(one: Setting, losses_SN: np.ndarray) -> str:
    """Trials needed, and the median share of the way that is left at the end."""
    accepted = worst_accepted(one)
    least = one.surface.least()
    left = (np.median(losses_SN[:, -1]) - least) / (accepted - least) * 0.02
    needed = trials_needed(losses_SN, accepted)
    return f"{'never' if needed is None else needed} ({left:.1%})"


if __name__ == "__main__":
    main()
