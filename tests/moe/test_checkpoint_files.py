from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe.hf import INDEX_FILE, CheckpointWriter, checkpoint_slices, finish_checkpoint, load_checkpoint, read_config
from moe.model import HybridModel
from tests.moe.conftest import TINY


@pytest.fixture
def written(model: HybridModel, tmp_path: Path) -> Path:
    writer = CheckpointWriter(tmp_path, part=0, shard_bytes=8000)
    for key, tensor in checkpoint_slices(model):
        writer.add(key, tensor)
    writer.flush()
    finish_checkpoint(tmp_path, TINY, torch.float32, writer.weight_map, writer.num_bytes)
    return tmp_path


def test_round_trip_is_bit_identical_over_several_shards(model: HybridModel, written: Path) -> None:
    assert len(list(written.glob("*.safetensors"))) > 2
    assert read_config(written) == TINY
    copy = HybridModel(TINY)
    load_checkpoint(copy, written)
    for (key, expected), (_, actual) in zip(checkpoint_slices(model), checkpoint_slices(copy), strict=True):
        assert torch.equal(expected, actual), key


def test_keys_are_the_published_ones(written: Path) -> None:
    keys = set(json.loads((written / INDEX_FILE).read_text())["weight_map"])
    layer = "model.layers.1."
    for key in (
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        f"{layer}input_layernorm.weight",
        f"{layer}post_attention_layernorm.weight",
        f"{layer}residual_layernorm.weight",
        *(f"{layer}self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"{layer}residual_mlp.w{number}.weight" for number in (1, 2, 3)),
        f"{layer}block_sparse_moe.gate.weight",
        *(f"{layer}block_sparse_moe.experts.{expert}.w{n}.weight" for expert in range(4) for n in (1, 2, 3)),
    ):
        keys.remove(key)
    assert all(key.startswith("model.layers.0.") for key in keys)


def _edit(directory: Path, edit) -> None:  # type: ignore[no-untyped-def]
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
    (directory / INDEX_FILE).unlink()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight", None), "no tensor model.norm.weight"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "unknown tensor model.extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)} if "model.norm.weight" in t else {}),
            r"model.norm.weight: shape \(3,\), expected \(16,\)",
        ),
        (
            lambda t: t["model.norm.weight"].fill_(float("nan")) if "model.norm.weight" in t else None,
            "model.norm.weight: holds NaN",
        ),
    ],
)
def test_a_bad_tensor_is_named(written: Path, edit, message: str) -> None:  # type: ignore[no-untyped-def]
    _edit(written, edit)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(HybridModel(TINY), written)


def test_a_truncated_shard_is_named(written: Path) -> None:
    shard = min(written.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=shard.name):
        load_checkpoint(HybridModel(TINY), written)
