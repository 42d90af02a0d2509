from __future__ import annotations

import math

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


@pytest.mark.parametrize(
    ("name", "active", "total", "width"), [("proxy-7b", 6.86, 187.1, 5 / 8), ("proxy-2b", 2.00, 52.0, 3 / 8)]
)
def test_proxies_are_arctic_made_narrower(name: str, active: float, total: float, width: float) -> None:
    arctic, proxy = PRESETS["arctic-480b"], PRESETS[name]
    assert round(proxy.num_active_params() / 1e9, 2) == active
    assert round(proxy.num_params() / 1e9, 1) == total
    for size in ("hidden_size", "num_heads", "num_kv_heads", "expert_intermediate_size"):
        assert getattr(proxy, size) == width * getattr(arctic, size)
    assert (proxy.head_dim, proxy.num_experts, proxy.top_k) == (128, 128, 2)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_config_survives_the_published_form(name: str) -> None:
    config = PRESETS[name]
    assert MoEConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("num_kv_heads", [8, 56])
def test_both_published_revisions_are_read_and_no_key_is_lost(num_kv_heads: int) -> None:
    arctic = PRESETS["arctic-480b"].to_hf() | {"num_key_value_heads": num_kv_heads}
    others = {"bos_token_id": 31998, "eos_token_id": 31999, "router_aux_loss_coef": 0.001, "moe_token_dropping": True}
    of_files = {"torch_dtype": "bfloat16", "auto_map": {"AutoConfig": "configuration_arctic.ArcticConfig"}}
    config = MoEConfig.from_hf(arctic | others | of_files | {"rope_scaling": None, "quantization": None})
    assert config.num_kv_heads == num_kv_heads
    assert config.to_hf() == arctic | others


def test_a_residual_mlp_of_another_size_is_counted_built_and_written() -> None:
    config = MoEConfig(
        vocab_size=30,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        num_experts=2,
        residual_intermediate_size=24,
    )
    model = HybridModel(config)
    assert model.layers[0].residual_mlp.w2.weight.shape == (16, 24)
    assert config.num_params() == sum(parameter.numel() for parameter in model.parameters())
    assert MoEConfig.from_hf(config.to_hf()) == config


def test_unsupported_and_missing_keys_are_named() -> None:
    document = PRESETS["quickstart"].to_hf()
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        MoEConfig.from_hf(document | {"hidden_act": "gelu"})
    assert MoEConfig.from_hf(document | {"rope_scaling": None, "sliding_window": None}) == PRESETS["quickstart"]
    with pytest.raises(ValueError, match="sliding_window is 4096"):
        MoEConfig.from_hf(document | {"sliding_window": 4096})
    with pytest.raises(ValueError, match="head_dim is 64, only 32"):
        MoEConfig.from_hf(document | {"head_dim": 64})
    assert MoEConfig.from_hf(document | {"head_dim": 32}) == PRESETS["quickstart"]
    for key in ("num_local_experts", "num_key_value_heads", "rope_theta"):
        with pytest.raises(ValueError, match=f"has no '{key}'"):
            MoEConfig.from_hf({other: value for other, value in document.items() if other != key})


@pytest.mark.parametrize(("key", "value"), [("moe_layer_frequency", 2), ("parallel_attn_mlp_res", False)])
def test_keys_are_required_whose_default_would_be_another_architecture(key: str, value: object) -> None:
    document = PRESETS["quickstart"].to_hf()
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        MoEConfig.from_hf(document | {key: value})
    del document[key]
    with pytest.raises(ValueError, match=f"has no '{key}'"):
        MoEConfig.from_hf(document)


@pytest.mark.parametrize("value", [None, "8", 8.5, True])
def test_sizes_that_are_no_whole_numbers_are_named(value: object) -> None:
    document = PRESETS["quickstart"].to_hf()
    for key in ("num_key_value_heads", "residual_intermediate_size"):
        if (key, value) != ("residual_intermediate_size", None):
            with pytest.raises(ValueError, match=f"{key} is {value!r}, no whole number"):
                MoEConfig.from_hf(document | {key: value})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_scaling": 2.0},
    ],
)
def test_angles_of_another_kind_are_refused(rope: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(rope))} is .*only the type 'default'"):
        MoEConfig.from_hf(PRESETS["quickstart"].to_hf() | rope)


def test_the_base_of_the_angles_is_found_in_either_place() -> None:
    document = PRESETS["quickstart"].to_hf()
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    for form in (document | rope, {key: value for key, value in document.items() if key != "rope_theta"} | rope):
        config = MoEConfig.from_hf(form)
        assert config.rope_theta == 5e5
        assert config.to_hf()["rope_theta"] == 5e5, "where the published code looks"
        assert "rope_parameters" not in config.to_hf()


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_kv_heads 3"):
        MoEConfig(num_kv_heads=3)
    with pytest.raises(ValueError, match="top_k 9 exceeds"):
        MoEConfig(num_experts=8, top_k=9)
    for name in ("num_layers", "expert_intermediate_size", "max_positions", "residual_intermediate_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, is 0"):
            MoEConfig(**{name: 0})
    for name, value in (("rope_theta", 0.0), ("norm_eps", math.nan), ("initializer_range", math.inf)):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, is {value}"):
            MoEConfig(**{name: value})
