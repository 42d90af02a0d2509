"""The beam finds what random search finds, in far fewer trials."""

from __future__ import annotations

import numpy as np
import pytest

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

NOISE = 0.002
"""Of the loss, between seeds."""
NUM_SEEDS = 50


@pytest.mark.slow
@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.surface.name)
def test_the_beam_needs_at_most_60_percent_of_random_searchs_trials(one: Setting) -> None:
    accepted = worst_accepted(one)
    random_SN = np.array([losses_of_random_search(one, 1000, NOISE, luck) for luck in range(NUM_SEEDS)])
    random = trials_needed(random_SN, accepted) or 1000
    allowed = min(int(0.6 * random), 60)
    stage = {"name": "proxy", "max_steps": 10, "rounds": 10}
    specs = [
        SweepSpec.model_validate(document(one.surface, one.base, stages=[stage], seed=seed))
        for seed in range(NUM_SEEDS)
    ]
    beam_SN = np.array([losses_of_sweep(one, spec, allowed, NOISE, luck) for luck, spec in enumerate(specs)])
    needed = trials_needed(beam_SN, accepted)
    assert needed is not None, f"not in {allowed} trials, where random search takes {random}"
