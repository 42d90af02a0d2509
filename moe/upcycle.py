"""From a dense Llama-type checkpoint to a hybrid that computes the same function, with experts ready to learn.

    python -m moe.upcycle SOURCE TARGET --num-experts 8

The dense MLP becomes the residual MLP, with its own intermediate size. Beside it comes an MoE whose experts' output
projections are zero, so at the first step every logit is the dense model's. The experts' other two projections are
random picks of the dense MLP's own rows, another pick for each expert: features that already mean something, and that
differ, so that the experts can specialise. The output projections learn from the first step on, what feeds them from
the second. The router is random. Rejected: copies of the dense MLP as experts, which all get the same gradient as long
as the router is even, and which need the dense MLP's size.

Tied embeddings are written twice, once as the output head, since the hybrid's are not tied. A tensor that the hybrid
has no place for is refused: without it, the function would be another.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.config import MoEConfig, rope_theta_of
from moe.hf import CONFIG_FILE, CheckpointWriter, TensorFiles, finish_checkpoint, read_object

MODEL_TYPES = ("llama", "mistral")
_SUPPORTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}
_RESIDUAL_MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENIZER_FILES = ("*token*", "vocab.json", "merges.txt", "chat_template*")
_EMBEDDINGS, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_FROM_THE_CONFIG = ".rotary_emb.inv_freq"
"""Ends the name of a tensor that old checkpoints hold, and whose values follow from the config."""


def upcycle(
    source: Path,
    target: Path,
    *,
    num_experts: int,
    top_k: int = 2,
    expert_intermediate_size: int | None = None,
    seed: int = 0,
) -> MoEConfig:
    """Write a hybrid checkpoint in the published Arctic form.

    Args:
        source: directory of a Llama-type checkpoint: `config.json` and safetensors, sharded or not.
        target: directory to write to; made if missing. Tokenizer files are copied, and token ids kept in the config.
        num_experts: of each layer.
        top_k: experts a token.
        expert_intermediate_size: rows of the dense MLP that each expert begins with; by default Arctic's ratio, 19/28
            of the hidden size, less up to 7, so that it is a multiple of 8: in 16-bit numbers `grouped_mm`, which GPUs
            need, takes no others.
        seed: of the experts' picks and the router.

    Returns:
        The hybrid's architecture.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint is of another type, computes what the hybrid does not, lacks a tensor or a size, or
            has a tensor more.
    """
    dense = read_object(source / CONFIG_FILE)
    config = _hybrid_config(dense, num_experts, top_k, expert_intermediate_size)
    target.mkdir(parents=True, exist_ok=True)
    writer = CheckpointWriter(target, part=0)
    with TensorFiles(source) as tensors:
        _refuse_unknown(tensors.keys, config)
        dtype = tensors.get(_EMBEDDINGS).dtype
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in _hybrid_tensors(tensors, config, generator):
            writer.add(key, tensor.to(dtype))
        # as Transformers does, whatever the file may hold beside tied embeddings
        writer.add(_HEAD, tensors.get(_EMBEDDINGS if dense.get("tie_word_embeddings") else _HEAD).to(dtype))
    writer.flush()
    finish_checkpoint(target, config, dtype, writer.weight_map, writer.num_bytes)
    for path in {path for pattern in _TOKENIZER_FILES for path in source.glob(pattern) if path.is_file()}:
        shutil.copy(path, target)
    return config


def _refuse_unknown(keys: frozenset[str], config: MoEConfig) -> None:
    parts = [*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}" for name in _RESIDUAL_MLP.values())]
    parts += ["input_layernorm", "post_attention_layernorm"]
    of_layers = {f"model.layers.{layer}.{part}.weight" for layer in range(config.num_layers) for part in parts}
    unknown = {key for key in keys if not key.endswith(_FROM_THE_CONFIG)} - of_layers - {_EMBEDDINGS, _NORM, _HEAD}
    if unknown:
        raise ValueError(f"the hybrid has no place for {min(unknown)}")


def _hybrid_config(dense: dict[str, Any], num_experts: int, top_k: int, expert_size: int | None) -> MoEConfig:
    if dense.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{CONFIG_FILE}: model_type is {dense.get('model_type')!r}, not one of {MODEL_TYPES}")
    for key, supported in _SUPPORTED.items():
        if dense.get(key, supported) != supported:
            raise ValueError(f"{CONFIG_FILE}: {key} is {dense[key]!r}, only {supported!r} is supported")
    if missing := [key for key in _SIZES if key not in dense]:
        raise ValueError(f"{CONFIG_FILE} has no {missing[0]!r}")
    hidden_size, num_heads = dense["hidden_size"], dense["num_attention_heads"]
    expert_size = expert_size or max(8, hidden_size * 19 // 28 // 8 * 8)
    if expert_size > dense["intermediate_size"]:
        raise ValueError(f"an expert begins with {expert_size} rows of an MLP that has {dense['intermediate_size']}")
    if dense.get("head_dim") not in (None, hidden_size // num_heads):
        raise ValueError(f"{CONFIG_FILE}: head_dim {dense['head_dim']} is not hidden_size / num_attention_heads")
    return MoEConfig(
        vocab_size=dense["vocab_size"],
        hidden_size=hidden_size,
        num_layers=dense["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=dense.get("num_key_value_heads") or num_heads,
        expert_intermediate_size=expert_size,
        num_experts=num_experts,
        top_k=top_k,
        max_positions=dense["max_position_embeddings"],
        rope_theta=rope_theta_of(dense) or 10_000.0,
        norm_eps=dense["rms_norm_eps"],
        initializer_range=dense.get("initializer_range", 0.02),
        residual_intermediate_size=dense["intermediate_size"],
        kept={key: dense[key] for key in _KEPT if key in dense},
    )


def _hybrid_tensors(dense: TensorFiles, config: MoEConfig, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """All but the output head."""
    yield _EMBEDDINGS, dense.get(_EMBEDDINGS)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        yield from ((prefix + key, tensor) for key, tensor in _dense_part(dense, prefix))
        yield from ((prefix + key, tensor) for key, tensor in _moe_part(dense, prefix, config, generator))
    yield _NORM, dense.get(_NORM)


def _dense_part(dense: TensorFiles, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """What the hybrid takes over, under its own names."""
    yield "input_layernorm.weight", dense.get(f"{prefix}input_layernorm.weight")
    for name in "qkvo":
        key = f"self_attn.{name}_proj.weight"
        yield key, dense.get(prefix + key)
    yield "residual_layernorm.weight", dense.get(f"{prefix}post_attention_layernorm.weight")
    for name, theirs in _RESIDUAL_MLP.items():
        yield f"residual_mlp.{name}.weight", dense.get(f"{prefix}mlp.{theirs}.weight")


def _moe_part(
    dense: TensorFiles, prefix: str, config: MoEConfig, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """What is new."""
    # the experts' rows were learnt behind this norm
    yield "post_attention_layernorm.weight", dense.get(f"{prefix}post_attention_layernorm.weight")
    gate_ED = torch.empty(config.num_experts, config.hidden_size)
    yield "block_sparse_moe.gate.weight", gate_ED.normal_(0, config.initializer_range, generator=generator)
    gate_proj, up_proj = (dense.get(f"{prefix}mlp.{name}.weight") for name in ("gate_proj", "up_proj"))
    for expert in range(config.num_experts):
        picked = torch.randperm(config.residual_size, generator=generator)[: config.expert_intermediate_size]
        key = f"block_sparse_moe.experts.{expert}"
        yield f"{key}.w1.weight", gate_proj[picked]
        yield f"{key}.w3.weight", up_proj[picked]
        yield f"{key}.w2.weight", gate_proj.new_zeros(config.hidden_size, config.expert_intermediate_size)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m moe.upcycle", description="Make a hybrid of a dense checkpoint.")
    parser.add_argument("source", type=Path, help="directory of a Llama-type checkpoint")
    parser.add_argument("target", type=Path, help="directory to write to")
    parser.add_argument("--num-experts", type=int, required=True)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--expert-intermediate-size", type=int, help="by default 19/28 of the hidden size, in eights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        config = upcycle(
            options.source,
            options.target,
            num_experts=options.num_experts,
            top_k=options.top_k,
            expert_intermediate_size=options.expert_intermediate_size,
            seed=options.seed,
        )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{config.num_params():,} parameters, {config.num_active_params():,} active")  # noqa: T201  a command's answer


if __name__ == "__main__":
    main()
