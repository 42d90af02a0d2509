"""The oracle of the tests: the same model, slow and obvious, one document and one token at a time, from published keys.

It shares no code with the fast path, so agreement means something.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe.config import MoEConfig


def reference_logits(config: MoEConfig, weights: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Logits of one document alone, [L, V].

    Args:
        config: the architecture.
        weights: published key -> tensor.
        tokens: L ids.
    """
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        w = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        a = x + _attention(config, w, _norm(config, x, w["input_layernorm.weight"]))
        r = a + _mlp(_norm(config, a, w["residual_layernorm.weight"]), w, "residual_mlp")
        x = r + _moe(config, w, _norm(config, x, w["post_attention_layernorm.weight"]))
    return _norm(config, x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def reference_balance_loss(config: MoEConfig, gate: Tensor, x: Tensor) -> Tensor:
    """`(E / S) * sum_e c_e * m_e` of S tokens, by counting in a loop; 1.0 at balance."""
    probabilities = torch.softmax(x @ gate.T, -1)
    counts = [0] * config.num_experts
    for token in probabilities:
        counts[int(token.argmax())] += 1
    means = probabilities.mean(0)
    products = [counts[expert] * means[expert] for expert in range(config.num_experts)]
    return config.num_experts / len(x) * torch.stack(products).sum()


def _norm(config: MoEConfig, x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight


def _mlp(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    gate = x @ w[f"{name}.w1.weight"].T
    return (gate * torch.sigmoid(gate) * (x @ w[f"{name}.w3.weight"].T)) @ w[f"{name}.w2.weight"].T


def _rotate(config: MoEConfig, x: Tensor, position: int) -> Tensor:
    half = config.head_dim // 2
    out = [x[0]] * config.head_dim
    for i in range(half):
        angle = position / config.rope_theta ** (2 * i / config.head_dim)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(out)


def _attention(config: MoEConfig, w: dict[str, Tensor], x: Tensor) -> Tensor:
    length, width = len(x), config.head_dim
    q, k, v = (x @ w[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    rows = []
    for query in range(length):
        heads = []
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            q_head = _rotate(config, q[query, head * width : (head + 1) * width], query)
            columns = slice(group * width, (group + 1) * width)
            keys = torch.stack([_rotate(config, k[key, columns], key) for key in range(query + 1)])
            heads.append(torch.softmax(keys @ q_head / math.sqrt(width), 0) @ v[: query + 1, columns])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ w["self_attn.o_proj.weight"].T


def _moe(config: MoEConfig, w: dict[str, Tensor], x: Tensor) -> Tensor:
    rows = []
    for token in x:
        probabilities = torch.softmax(w["block_sparse_moe.gate.weight"] @ token, 0)
        chosen = sorted(range(config.num_experts), key=lambda expert: -probabilities[expert].item())[: config.top_k]
        total = sum(probabilities[expert] for expert in chosen)
        outputs = [
            probabilities[expert] / total * _mlp(token, w, f"block_sparse_moe.experts.{expert}") for expert in chosen
        ]
        rows.append(torch.stack(outputs).sum(0))
    return torch.stack(rows)
