"""Random weights: which, and that they depend on nothing but seed and name."""

from __future__ import annotations

import torch

from moe.config import PRESETS
from moe.hf import checkpoint_slices
from moe.init import initialize
from moe.model import HybridModel
from tests.moe.conftest import TINY
from tests.moe.test_checkpoint_files import FirstHalf, SecondHalf


def weights(seed: int, model: HybridModel | None = None) -> dict[str, torch.Tensor]:
    model = model or HybridModel(TINY)
    initialize(model, seed)
    return dict(checkpoint_slices(model))


def test_norms_are_one_and_all_else_is_normal_of_the_configs_range() -> None:
    for key, tensor in weights(0, HybridModel(PRESETS["quickstart-1m"])).items():
        if "norm" in key:
            assert (tensor == 1).all(), key
        else:
            # of n numbers the mean is off by 0.02 / sqrt(n), the deviation by 0.02 / sqrt(2 n): five times that
            bound = 5 * 0.02 / tensor.numel() ** 0.5
            assert abs(float(tensor.mean())) < bound, key
            assert abs(float(tensor.std()) - 0.02) < bound / 2**0.5, key


def test_they_follow_from_seed_and_name_whoever_holds_the_experts() -> None:
    whole, other = weights(0), weights(1)
    matrices = [key for key in whole if "norm" not in key]
    assert not any(torch.equal(whole[key], other[key]) for key in matrices)
    first_numbers = {float(whole[key].flatten()[0]) for key in matrices}
    assert len(first_numbers) == len(matrices), "no two tensors are alike"
    halves = [weights(0, HybridModel(TINY, half())) for half in (FirstHalf, SecondHalf)]
    assert halves[0].keys() | halves[1].keys() == whole.keys()
    for half in halves:
        assert all(torch.equal(tensor, whole[key]) for key, tensor in half.items())
