from __future__ import annotations

import pytest
import torch

from moe.config import PRESETS, MoEConfig
from moe.model import HybridModel


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_counts_equal_the_built_model(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = HybridModel(config)
    assert config.num_params() == sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    gates = sum(p.numel() for n, p in model.named_parameters() if ".gate." in n)
    assert config.num_dense_params() == config.num_params() - experts - gates
    assert config.num_active_params() == config.num_dense_params() + experts * config.top_k // config.num_experts


def test_arctic_has_the_published_size() -> None:
    arctic = PRESETS["arctic-480b"]
    assert round(arctic.num_params() / 1e9, 1) == 478.6
    assert round(arctic.num_active_params() / 1e9, 2) == 17.29
    assert round(arctic.num_dense_params() / 1e9, 2) == 9.96


def test_config_survives_the_published_form() -> None:
    config = PRESETS["quickstart"]
    assert MoEConfig.from_hf(config.to_hf()) == config


def test_unsupported_and_missing_keys_are_named() -> None:
    document = PRESETS["quickstart"].to_hf()
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        MoEConfig.from_hf(document | {"hidden_act": "gelu"})
    assert MoEConfig.from_hf(document | {"rope_scaling": None, "sliding_window": None}) == PRESETS["quickstart"]
    with pytest.raises(ValueError, match="rope_scaling is"):
        MoEConfig.from_hf(document | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    with pytest.raises(ValueError, match="rope_parameters is"):
        MoEConfig.from_hf(document | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}})
    with pytest.raises(ValueError, match="sliding_window is 4096"):
        MoEConfig.from_hf(document | {"sliding_window": 4096})
    del document["num_local_experts"]
    with pytest.raises(ValueError, match="num_local_experts"):
        MoEConfig.from_hf(document)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_kv_heads 3"):
        MoEConfig(num_kv_heads=3)
    with pytest.raises(ValueError, match="top_k 9 exceeds"):
        MoEConfig(num_experts=8, top_k=9)
