"""The architecture of a dense-MoE hybrid, and the named presets.

Standard library only, so that the control plane can check a spec against it. Field names and defaults are those of the
published Arctic `config.json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Tuning = Literal["full", "frozen_moe", "router_only"]
"""What is trained: all; the dense part, with every router and expert frozen; the routers, with all else frozen."""

_HF_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "expert_intermediate_size": "intermediate_size",
    "num_experts": "num_local_experts",
    "top_k": "num_experts_per_tok",
    "max_positions": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "initializer_range": "initializer_range",
}
"""Our field -> key of `config.json`."""

_HF_RESIDUAL = "residual_intermediate_size"

_HF_FIXED = {
    "model_type": "arctic",
    "architectures": ["ArcticForCausalLM"],
    "hidden_act": "silu",
    "moe_layer_frequency": 1,
    "use_residual": True,
    "parallel_attn_mlp_res": True,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0,
}
"""Keys of `config.json` that this package supports at one value only."""

_HF_WITHOUT_DEFAULT = ("rope_theta", "moe_layer_frequency", "parallel_attn_mlp_res")
"""Keys that must be there: where they are missing, the published code takes 1e6, 2 and false, not Arctic's values."""

_HF_NULL = ("sliding_window", "quantization", "quantization_config")
"""Keys that ask for what this package does not compute, unless they are absent or null."""

_HF_ROPE = ("rope_scaling", "rope_parameters")

_HF_OF_FILES = ("auto_map", "_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys that speak of the files beside the config, not of the model: not true of a checkpoint written elsewhere."""


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """Sizes of a dense-MoE hybrid; the defaults are Arctic's.

    Every layer has attention, a dense residual MLP and a top-k MoE. The residual MLP's intermediate size is
    `hidden_size`, as published, unless `residual_intermediate_size` says otherwise: an upcycled model keeps its dense
    ancestor's, under a key of `config.json` that the published form does not have.

    `kept` holds what else stood in the `config.json` that was read, such as token ids, to be written back; it decides
    nothing here, and configs that differ in it are equal.
    """

    vocab_size: int = 32_000
    hidden_size: int = 7168
    num_layers: int = 35
    num_heads: int = 56
    num_kv_heads: int = 8
    expert_intermediate_size: int = 4864
    num_experts: int = 128
    top_k: int = 2
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    residual_intermediate_size: int | None = None
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.residual_intermediate_size is not None and self.residual_intermediate_size < 1:
            raise ValueError(f"residual_intermediate_size must be at least 1, is {self.residual_intermediate_size}")
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ValueError(f"hidden_size {self.hidden_size} / num_heads {self.num_heads} is no even whole number")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} exceeds num_experts {self.num_experts}")
        for name in ("rope_theta", "norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, is {getattr(self, name)}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def residual_size(self) -> int:
        """Intermediate size of the residual MLP."""
        return self.residual_intermediate_size or self.hidden_size

    @property
    def num_expert_params(self) -> int:
        """Parameters of one expert in one layer."""
        return 3 * self.hidden_size * self.expert_intermediate_size

    def num_dense_params(self) -> int:
        """Parameters outside the MoE: embeddings, attention, residual MLPs, norms, output head."""
        d, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        layer = 2 * d * d + 2 * d * kv + 3 * d * self.residual_size + 3 * d
        return self.num_layers * layer + 2 * self.vocab_size * d + d

    def num_router_params(self) -> int:
        """Parameters of all gates."""
        return self.num_layers * self.hidden_size * self.num_experts

    def num_params(self) -> int:
        """All parameters."""
        experts = self.num_layers * self.num_experts * self.num_expert_params
        return self.num_dense_params() + self.num_router_params() + experts

    def num_trained_params(self, tuning: Tuning) -> int:
        """Parameters that change in training."""
        trained = {"full": self.num_params, "frozen_moe": self.num_dense_params, "router_only": self.num_router_params}
        return trained[tuning]()

    def num_active_params(self) -> int:
        """Weights of one token's forward pass, as Arctic's 17.29B counts them: embeddings whole, gates (0.03B) not."""
        return self.num_dense_params() + self.num_layers * self.top_k * self.num_expert_params

    def num_activations(self) -> int:
        """Numbers of the model's type that one layer keeps of each token for the backward pass, without recomputation.

        The layer's input, the outputs of three norms and of the attention before the residual MLP; queries, keys,
        values, and what was attended to, by document and together; gate, up and product of the residual MLP; and for
        each chosen expert its input, gate, up and output. Beside them each expert's probability in fp32, and some 90
        bytes, of which 16 a chosen expert are the copies' order.
        """
        d, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        experts = self.top_k * (2 * d + 2 * self.expert_intermediate_size)
        return 5 * d + (3 * d + 2 * kv) + 3 * self.residual_size + experts

    def to_hf(self) -> dict[str, Any]:
        """The published form: the content of `config.json`."""
        document = self.kept | _HF_FIXED | {key: getattr(self, name) for name, key in _HF_NAMES.items()}
        if self.residual_intermediate_size is not None:
            document[_HF_RESIDUAL] = self.residual_intermediate_size
        return document

    @classmethod
    def from_hf(cls, document: dict[str, Any]) -> MoEConfig:
        """Read a published `config.json`, of either revision: 56 or 8 key-value heads.

        Raises:
            ValueError: a key is missing that has no default or Arctic's is not the published code's, a size is no
                number, or a key asks for what this package does not compute.
        """
        _refuse_unsupported(document)
        theta = rope_theta_of(document)
        document = document if theta is None else document | {"rope_theta": theta}
        for key in (*_REQUIRED_HF_KEYS, *_HF_WITHOUT_DEFAULT):
            if key not in document:
                raise ValueError(f"config.json has no {key!r}")
        sizes = {n: _number(document, key, is_count=n in _COUNTS) for n, key in _HF_NAMES.items() if key in document}
        if document.get(_HF_RESIDUAL) is not None:
            sizes["residual_intermediate_size"] = _number(document, _HF_RESIDUAL, is_count=True)
        read = {*_HF_NAMES.values(), *_HF_FIXED, *_HF_NULL, *_HF_OF_FILES, *_HF_ROPE, _HF_RESIDUAL}
        config = cls(**sizes, kept={key: value for key, value in document.items() if key not in read})
        if document.get("head_dim", config.head_dim) not in (None, config.head_dim):
            raise ValueError(f"config.json: head_dim is {document['head_dim']!r}, only {config.head_dim} is supported")
        return config


def rope_theta_of(document: dict[str, Any]) -> float | None:
    """The base of the rotary angles: at the top of a `config.json`, or where Transformers 5 writes it, one level below.

    Returns:
        None where neither says it.

    Raises:
        ValueError: the angles are scaled, or not all of a head's width is rotated.
    """
    theta: float | None = document.get("rope_theta")
    for key in _HF_ROPE:
        rope = document.get(key) or {}
        plain = isinstance(rope, dict) and not rope.keys() - {"rope_theta", "rope_type", "type"}
        if not plain or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(f"config.json: {key} is {rope!r}, only the type 'default' is supported")
        theta = rope.get("rope_theta", theta)
    return theta


def _refuse_unsupported(document: dict[str, Any]) -> None:
    for key, supported in _HF_FIXED.items():
        if key in document and document[key] != supported:
            raise ValueError(f"config.json: {key} is {document[key]!r}, only {supported!r} is supported")
    for key in _HF_NULL:
        if document.get(key) is not None:
            raise ValueError(f"config.json: {key} is {document[key]!r}, only null is supported")


def _number(document: dict[str, Any], key: str, *, is_count: bool) -> Any:
    value = document[key]
    if isinstance(value, bool) or not isinstance(value, int if is_count else (int, float)):
        kind = "whole number" if is_count else "number"
        raise ValueError(f"config.json: {key} is {value!r}, no {kind}")  # noqa: TRY004  the file's fault
    return value


_COUNTS = tuple(f.name for f in fields(MoEConfig) if f.type == "int")

_REQUIRED_HF_KEYS = tuple(_HF_NAMES[name] for name in _COUNTS if name != "max_positions")

PRESETS: dict[str, MoEConfig] = {
    "arctic-480b": MoEConfig(),
    "proxy-7b": MoEConfig(hidden_size=4480, num_heads=35, num_kv_heads=5, expert_intermediate_size=3040),
    "proxy-2b": MoEConfig(hidden_size=2688, num_layers=27, num_heads=21, num_kv_heads=3, expert_intermediate_size=1824),
    "quickstart": MoEConfig(
        vocab_size=4096,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        expert_intermediate_size=128,
        num_experts=8,
    ),
    "quickstart-1m": MoEConfig(
        vocab_size=4096,
        hidden_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        expert_intermediate_size=96,
        num_experts=8,
    ),
    "quickstart-3m": MoEConfig(
        vocab_size=4096,
        hidden_size=176,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        expert_intermediate_size=176,
        num_experts=8,
    ),
}
"""Architectures by name.

The proxies, for ablations over data mixes, are designs of ours: Arctic made narrower with all of its ratios kept (head
width 128, 7 query heads a key-value head, experts of 19/28 of the width, 128 experts, top 2), which allows widths in
steps of 896. `proxy-7b` is 5/8 as wide and as deep: 6.86B parameters active of 187.1B. `proxy-2b` is 3/8 as wide, and
27 layers deep so as to come to 2.00B active, of 52.0B. `quickstart` is small enough for two CPU cores to train it in
about two minutes; `quickstart-1m` and `quickstart-3m`, of 1.0M and 2.9M active parameters, are proxies of its kind.
"""
