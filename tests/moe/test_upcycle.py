"""A dense checkpoint of transformers, upcycled, computes what transformers computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from moe.attention import Documents
from moe.experts import grouped_swiglu
from moe.hf import INDEX_FILE, load_checkpoint, read_config
from moe.model import HybridModel, PackedBatch
from moe.upcycle import _hybrid_config, upcycle

TOKENS = [3, 14, 15, 9, 2, 6, 5, 35, 8]

# Two layers of four products each, sums of up to 40 terms, a softmax and two norms a layer, the head: some 2 x 8 + 2
# stages, each rounding its at most 40 terms in another order than transformers does.
TOLERANCE = 18 * 40 * 2**-24


def dense_model(directory: Path, *, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=5000.0,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(directory)
    return model


def hybrid_model(directory: Path) -> HybridModel:
    model = HybridModel(read_config(directory))
    load_checkpoint(model, directory)
    return model


def logits(model: HybridModel) -> torch.Tensor:
    batch = PackedBatch(torch.tensor(TOKENS), Documents.from_lengths([len(TOKENS)]), (len(TOKENS),))
    out: torch.Tensor = model.lm_head(model(batch)[0])
    return out


@pytest.mark.parametrize("tied", [False, True])
def test_the_function_is_unchanged(tmp_path: Path, tied: bool) -> None:
    dense = dense_model(tmp_path / "dense", tied=tied)
    config = upcycle(tmp_path / "dense", tmp_path / "hybrid", num_experts=4, expert_intermediate_size=10)
    assert (config.residual_size, config.num_experts, config.rope_theta) == (40, 4, 5000.0)
    expected = dense(torch.tensor([TOKENS])).logits[0]
    hybrid = hybrid_model(tmp_path / "hybrid")
    bound = TOLERANCE * expected.abs().max().item()
    torch.testing.assert_close(logits(hybrid), expected, rtol=0, atol=bound)

    with torch.no_grad():
        hybrid.layers[1].block_sparse_moe.experts.w2_EDF.fill_(1e-3)
    assert (logits(hybrid) - expected).abs().max() > bound, "the comparison notices experts that say something"


def test_experts_differ_and_learn_from_the_first_step(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", tied=False)
    upcycle(tmp_path / "dense", tmp_path / "hybrid", num_experts=4, top_k=4, expert_intermediate_size=10)
    hybrid = hybrid_model(tmp_path / "hybrid")
    experts = hybrid.layers[0].block_sparse_moe.experts
    for first in range(4):
        for second in range(first):
            assert not torch.equal(experts.w13_EGD[first], experts.w13_EGD[second])
    gates = [layer.block_sparse_moe.router.gate.weight for layer in hybrid.layers]
    for gate_ED in gates:  # of 96 numbers of deviation 0.3: five times its own error of 7 %
        assert 0.65 < gate_ED.std() / 0.3 < 1.35, "a router that is all alike sends all tokens to the same experts"
    assert not torch.equal(*gates)
    logits(hybrid).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    gradient_EDF = experts.w2_EDF.grad
    assert gradient_EDF is not None
    assert all(gradient_DF.any() for gradient_DF in gradient_EDF)


def test_experts_begin_with_pairs_of_the_dense_mlps_rows_behind_its_norm(tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense", tied=False)
    upcycle(tmp_path / "dense", tmp_path / "hybrid", num_experts=3, expert_intermediate_size=10)
    for layer, theirs in zip(hybrid_model(tmp_path / "hybrid").layers, dense.model.layers, strict=True):
        assert torch.equal(layer.post_attention_layernorm.weight, theirs.post_attention_layernorm.weight)
        pairs = {(*gate, *up) for gate, up in zip(*(rows(theirs.mlp, part) for part in ("gate", "up")), strict=True)}
        for w13_GD in layer.block_sparse_moe.experts.w13_EGD.tolist():
            picked = {(*gate, *up) for gate, up in zip(w13_GD[:10], w13_GD[10:], strict=True)}
            assert len(picked) == 10, "none twice"
            assert picked <= pairs


def rows(mlp: LlamaMLP, part: str) -> list[list[float]]:
    """Of one of its projections."""
    numbers: list[list[float]] = getattr(mlp, f"{part}_proj").weight.tolist()
    return numbers


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", tied=False)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        upcycle(tmp_path / "dense", tmp_path / name, num_experts=2, expert_intermediate_size=10, seed=seed)
    shard = "model-00000-00000.safetensors"
    first, second, other = ((tmp_path / name / shard).read_bytes() for name in "abc")
    assert first == second != other


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is {'rope_type': 'yarn'}"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_scaling is {'type': 'linear'}"),
        ({"intermediate_size": 9}, "10 rows of an MLP that has 9"),
    ],
)
def test_what_the_hybrid_cannot_compute_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    dense_model(tmp_path, tied=False)
    document = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document | change))
    with pytest.raises(ValueError, match=reason):
        upcycle(tmp_path, tmp_path / "hybrid", num_experts=4, expert_intermediate_size=10)


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    [path] = directory.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.zeros(40)}), "no place for .*up_proj.bias"),
        (lambda t: t.update({"model.layers.2.input_layernorm.weight": torch.ones(24)}), "no place for .*layers.2"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "no tensor model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.pop("lm_head.weight"), "no tensor lm_head.weight"),
    ],
)
def test_tensors_too_many_and_too_few_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    dense_model(tmp_path / "dense", tied=False)
    change_tensors(tmp_path / "dense", change)
    with pytest.raises(ValueError, match=reason):
        upcycle(tmp_path / "dense", tmp_path / "hybrid", num_experts=4, expert_intermediate_size=10)
    assert not (tmp_path / "hybrid" / INDEX_FILE).exists()


def test_what_follows_from_the_config_may_be_there_and_a_tied_head_does_not_count(tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense", tied=True)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "lm_head.weight": torch.ones(40, 24)}
    change_tensors(tmp_path / "dense", lambda tensors: tensors.update(extra))
    upcycle(tmp_path / "dense", tmp_path / "hybrid", num_experts=2, expert_intermediate_size=10)
    assert torch.equal(hybrid_model(tmp_path / "hybrid").lm_head.weight, dense.model.embed_tokens.weight)


@pytest.mark.parametrize("key", ["intermediate_size", "rms_norm_eps"])
def test_a_missing_size_is_named(tmp_path: Path, key: str) -> None:
    dense_model(tmp_path, tied=False)
    document = json.loads((tmp_path / "config.json").read_text())
    del document[key]
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"config.json has no '{key}'"):
        upcycle(tmp_path, tmp_path / "hybrid", num_experts=4, expert_intermediate_size=10)


def test_tokenizer_files_token_ids_and_number_type_are_taken_over(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", tied=False)
    document = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps(document | {"eos_token_id": 7}))
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}
    for name in names | {"chat_template.jinja", "README.md"}:
        (tmp_path / "dense" / name).write_text(name)
    change_tensors(tmp_path / "dense", lambda tensors: tensors.update({k: t.half() for k, t in tensors.items()}))
    upcycle(tmp_path / "dense", tmp_path / "hybrid", num_experts=2, expert_intermediate_size=10)
    ours = {INDEX_FILE, "config.json", "model-00000-00000.safetensors"}
    assert {path.name for path in (tmp_path / "hybrid").iterdir()} - ours == names | {"chat_template.jinja"}
    written = json.loads((tmp_path / "hybrid" / "config.json").read_text())
    assert (written["eos_token_id"], written["torch_dtype"]) == (7, "float16")
    assert {t.dtype for t in load_file(tmp_path / "hybrid" / "model-00000-00000.safetensors").values()} == {torch.half}


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moe.upcycle", str(tmp_path), str(tmp_path / "hybrid"), "--num-experts", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "config.json" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_command_says_what_came_out(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", tied=False)
    command = [sys.executable, "-m", "moe.upcycle", str(tmp_path / "dense"), str(tmp_path / "hybrid")]
    done = subprocess.run([*command, "--num-experts", "4"], capture_output=True, text=True, check=True)
    config = read_config(tmp_path / "hybrid")
    assert done.stdout == f"{config.num_params():,} parameters, {config.num_active_params():,} active\n"
    assert config.expert_intermediate_size == 24 * 19 // 28


# SmolLM2, where 19/28 would be 390, TinyLlama (1389), Arctic, which divides, and a width whose 19/28 is below 8
@pytest.mark.parametrize(("hidden_size", "expected"), [(576, 384), (2048, 1384), (7168, 4864), (8, 8)])
def test_experts_have_by_default_a_size_that_grouped_mm_takes(tmp_path: Path, hidden_size: int, expected: int) -> None:
    dense_model(tmp_path, tied=False)
    dense = json.loads((tmp_path / "config.json").read_text())
    dense |= {"hidden_size": hidden_size, "head_dim": None, "num_attention_heads": 4, "intermediate_size": hidden_size}
    size = _hybrid_config(dense, 4, 2, None).expert_intermediate_size
    assert size == expected
    x_MD, w13_EGD, w2_EDF = torch.ones(2, 16), torch.ones(1, 2 * size, 16), torch.ones(1, 16, size)
    grouped_swiglu(*(tensor.bfloat16() for tensor in (x_MD, w13_EGD, w2_EDF)), torch.tensor([2]))
