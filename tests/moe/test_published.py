"""The model, and the files that it writes, against the published forward pass, put together of Transformers' parts.

Transformers has no Arctic. But Arctic's published code takes its norms, rotary embedding and attention from there;
those are Mixtral's, too. Here they stand in the published layer under the published names, so that `load_state_dict`
reads the checkpoint as that code would. `moe.reference`, by contrast, is this project's own reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
    MixtralTopKRouter,
)

import moe.attention
import moe.model
from moe.attention import Documents, rotary_table
from moe.config import PRESETS, MoEConfig
from moe.hf import INDEX_FILE, CheckpointWriter, checkpoint_slices, finish_checkpoint
from moe.model import HybridModel, PackedBatch
from moe.router import Router
from tests.moe.conftest import TINY, tiny_model
from tests.moe.test_parity import GRADIENT_TOLERANCE, RELATIVE_TOLERANCE

LENGTHS = (7, 1, 24)
LONG = (600,)
"""Far positions, whose angles need more digits than bf16 has."""
CONFIGS = {
    "as it is": TINY,
    "one expert a token": replace(TINY, top_k=1),
    "all experts": replace(TINY, top_k=4),
    "a single expert": replace(TINY, num_experts=1, top_k=1),
    "as many key-value heads as heads": replace(TINY, num_kv_heads=4),
    "one key-value head": replace(TINY, num_kv_heads=1),
}


class MLP(nn.Module):
    """Of an expert, or residual."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(hidden, intermediate, bias=False) for _ in range(2))
        self.w2 = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class SparseMoE(nn.Module):
    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        sizes = config.hidden_size, config.expert_intermediate_size
        self.experts = nn.ModuleList(MLP(*sizes) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Every expert computes every token."""
        weights, chosen = F.softmax(self.gate(x), dim=-1, dtype=torch.float).topk(self.top_k, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            out = out + expert(x) * (weights * (chosen == index)).sum(-1, keepdim=True)
        return out


class Layer(nn.Module):
    def __init__(self, config: MoEConfig, theirs: MixtralConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.norm_eps
        self.input_layernorm, self.residual_layernorm, self.post_attention_layernorm = (
            MixtralRMSNorm(hidden, eps) for _ in range(3)
        )
        self.self_attn = MixtralAttention(theirs, index)
        self.residual_mlp = MLP(hidden, hidden)
        self.block_sparse_moe = SparseMoE(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        attended: Tensor = x + self.self_attn(self.input_layernorm(x), rotary, mask)[0]
        beside = attended + self.residual_mlp(self.residual_layernorm(attended))
        return beside + self.block_sparse_moe(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


def transformers_config(config: MoEConfig) -> MixtralConfig:
    theirs = MixtralConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.top_k,
        rope_theta=config.rope_theta,
        max_position_embeddings=config.max_positions,
    )
    theirs._attn_implementation = "eager"
    return theirs


class Published(nn.Module):
    """One document a call, from published keys."""

    def __init__(self, config: MoEConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        theirs = transformers_config(config)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Layer(config, theirs, index) for index in range(config.num_layers))
        self.model.norm = MixtralRMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = MixtralRotaryEmbedding(theirs)
        self.to(weights["lm_head.weight"].dtype)
        self.load_state_dict(weights)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.model.embed_tokens(tokens)[None]
        rotary = self.rotary(x, torch.arange(len(tokens))[None])
        mask = x.new_full((len(tokens), len(tokens)), -torch.inf).triu(1)[None, None]
        for layer in self.model.layers:
            x = layer(x, rotary, mask)
        return self.lm_head(self.model.norm(x))[0]  # type: ignore[no-any-return]


def write(model: HybridModel, directory: Path) -> None:
    writer = CheckpointWriter(directory, part=0, shard_bytes=8000)
    for key, tensor in checkpoint_slices(model):
        writer.add(key, tensor)
    writer.flush()
    dtype = model.lm_head.weight.dtype
    finish_checkpoint(directory, model.config, dtype, writer.weight_map, writer.num_bytes)


def published(config: MoEConfig, directory: Path) -> Published:
    """Read as a stranger to `moe.hf` does: every tensor of the index, out of the file that it names."""
    index = json.loads((directory / INDEX_FILE).read_text())
    shards = {name: load_file(directory / name) for name in set(index["weight_map"].values())}
    weights = {key: shards[name][key] for key, name in index["weight_map"].items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    return Published(config, weights)


def logits_of(model: HybridModel | Published, lengths: tuple[int, ...]) -> Tensor:
    """Of documents of such lengths."""
    tokens_T = torch.randint(0, TINY.vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(5))
    if isinstance(model, Published):
        return torch.cat([model(part) for part in tokens_T.split(lengths)])
    hidden_TD, _ = model(PackedBatch(tokens_T, Documents.from_lengths(lengths), (len(tokens_T),)))
    logits_TV: Tensor = model.lm_head(hidden_TD)
    return logits_TV


def gradients_of(model: HybridModel | Published) -> dict[str, Tensor]:
    """By published key; the model's weights are lost."""
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    named = model.named_parameters() if isinstance(model, Published) else checkpoint_slices(model)
    return {key: tensor.detach() for key, tensor in named}


def error(mine: Tensor, theirs: Tensor) -> float:
    """Relative to the largest element; zeros must be zeros."""
    return float((mine.double() - theirs.double()).abs().max() / theirs.abs().max().clamp(min=torch.finfo().tiny))


def errors(config: MoEConfig, directory: Path) -> tuple[float, float]:
    """Of logits, and the worst of gradients."""
    mine = tiny_model(config=config)
    write(mine, directory)
    theirs = published(config, directory)
    logits = [logits_of(model, LENGTHS) for model in (mine, theirs)]
    for logits_TV in logits:
        logits_TV.square().mean().backward()
    gradients, expected = gradients_of(mine), gradients_of(theirs)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    of_gradients = []
    for key, gradient in expected.items():
        if config.top_k == 1 and ".gate." in key:  # a single weight is 1 whatever the gate says
            assert max(gradients[key].abs().max(), gradient.abs().max()) < GRADIENT_TOLERANCE * largest
        else:
            of_gradients.append(error(gradients[key], gradient))
    return error(logits[0].detach(), logits[1].detach()), max(of_gradients)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_computes_the_same_in_the_published_code(name: str, tmp_path: Path) -> None:
    of_logits, of_gradients = errors(CONFIGS[name], tmp_path)
    # each is as far from exact arithmetic as `test_parity` allows
    assert of_logits < 2 * RELATIVE_TOLERANCE
    assert of_gradients < 2 * GRADIENT_TOLERANCE


def _gate_and_up_swapped(patch: pytest.MonkeyPatch) -> None:
    slices, other = checkpoint_slices, {"w1": "w3", "w3": "w1"}

    def swapped(model: HybridModel) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in slices(model):
            part = key.removesuffix(".weight")
            yield (f"{part[:-2]}{other.get(part[-2:], part[-2:])}.weight" if ".experts." in key else key), tensor

    patch.setitem(globals(), "checkpoint_slices", swapped)


def _pairs_side_by_side(patch: pytest.MonkeyPatch) -> None:
    """Rotary pairs of neighbours, as in the paper, instead of halves."""

    def rotate(x_THK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
        half = x_THK.shape[-1] // 2
        first, second = x_THK[..., ::2], x_THK[..., 1::2]
        cos, sin = cos_T1K[..., :half], sin_T1K[..., :half]
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)

    patch.setattr(moe.attention, "rotate", rotate)


@pytest.mark.parametrize("mutate", [_gate_and_up_swapped, _pairs_side_by_side])
def test_the_comparison_notices(
    mutate: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert errors(TINY, tmp_path)[0] > 100 * RELATIVE_TOLERANCE


@torch.no_grad()
def distances_in_bf16(directory: Path) -> tuple[float, float]:
    """Of the model's logits and of the published code's, both in bf16, from the latter's in fp32 with equal weights.

    All experts are chosen: a choice that rounding turned would say nothing of precision.
    """
    config = CONFIGS["all experts"]
    model = tiny_model(config=config).bfloat16()
    write(model, directory)
    theirs = published(config, directory)
    weights = {key: tensor.detach().float() for key, tensor in theirs.state_dict().items()}
    exact_TV = logits_of(Published(config, weights), LONG)
    return error(logits_of(model, LONG), exact_TV), error(logits_of(theirs, LONG), exact_TV)


def test_in_bf16_it_is_no_further_from_exact_than_the_published_code(tmp_path: Path) -> None:
    """Up to a factor of two: the same roundings, and fewer in the attention, meet other values."""
    mine, theirs = distances_in_bf16(tmp_path)
    assert 0 < mine < 2 * theirs


def _angles_in_bf16(patch: pytest.MonkeyPatch) -> None:
    def rounded(config: MoEConfig, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, config.head_dim, 2).to(dtype) / config.head_dim
        angles = positions_T.to(dtype)[:, None] * (1.0 / config.rope_theta**exponents)
        angles = torch.cat([angles, angles], -1)[:, None, :]
        return angles.cos(), angles.sin()

    patch.setattr(moe.model, "rotary_table", rounded)


def test_that_notices_angles_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _angles_in_bf16(monkeypatch)
    mine, theirs = distances_in_bf16(tmp_path)
    assert mine > 2 * theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_tables_are_the_published_bits(dtype: torch.dtype) -> None:
    arctic = PRESETS["arctic-480b"]
    positions_T = torch.arange(arctic.max_positions)
    theirs = MixtralRotaryEmbedding(transformers_config(arctic))(torch.empty(0, dtype=dtype), positions_T[None])
    for mine, other in zip(rotary_table(arctic, positions_T, dtype), theirs, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine[:, 0], other[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routing_is_the_published_bits(dtype: torch.dtype) -> None:
    """In bf16 the softmax is of fp32, of the gate's rounded logits, and the weights are rounded last."""
    mine, theirs = Router(TINY), MixtralTopKRouter(transformers_config(TINY))
    theirs.weight = nn.Parameter(torch.randn(theirs.weight.shape, generator=torch.Generator().manual_seed(0)))
    mine.gate.weight = theirs.weight
    x_TD = torch.randn(200, TINY.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    routing = mine.to(dtype)(x_TD)
    logits_TE, weights_TK, experts_TK = theirs.to(dtype)(x_TD)
    assert routing.probabilities_TE.dtype == torch.float32
    assert routing.probabilities_TE.equal(torch.softmax(logits_TE.float(), -1))
    assert routing.experts_TK.equal(experts_TK)
    assert routing.weights_TK.dtype == dtype
    assert routing.weights_TK.equal(weights_TK.to(dtype))
