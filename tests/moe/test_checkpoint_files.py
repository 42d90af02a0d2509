from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe.dispatch import ExpertParallel
from moe.hf import (
    INDEX_FILE,
    CheckpointWriter,
    TensorFiles,
    checkpoint_slices,
    finish_checkpoint,
    load_checkpoint,
    read_config,
)
from moe.init import initialize
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


def test_a_shard_is_at_most_as_large_as_asked_for_or_a_single_tensor(written: Path) -> None:
    shards = [load_file(path) for path in written.glob("*.safetensors")]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert max(map(len, shards)) > 1
    assert all(size <= 8000 or len(shard) == 1 for size, shard in zip(sizes, shards, strict=True))


def test_what_is_written_is_what_was_queued(tmp_path: Path) -> None:
    """Not what has become of it before its shard is full."""
    writer, tensor = CheckpointWriter(tmp_path, part=0), torch.ones(3)
    writer.add("key", tensor)
    tensor.zero_()
    writer.flush()
    assert load_file(tmp_path / writer.weight_map["key"])["key"].tolist() == [1, 1, 1]


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
        (
            lambda t: t.update({"model.extra": torch.zeros(1)} if "model.norm.weight" in t else {}),
            "unknown tensor model.extra",
        ),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "00001.safetensors: model.extra lies in .*00000.* too"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)} if "model.norm.weight" in t else {}),
            r"model.norm.weight: shape \(3,\), expected \(16,\)",
        ),
        (
            lambda t: t["model.norm.weight"].fill_(float("nan")) if "model.norm.weight" in t else None,
            "model.norm.weight: holds NaN",
        ),
        (
            lambda t: t["model.norm.weight"].fill_(-torch.inf) if "model.norm.weight" in t else None,
            "model.norm.weight: holds NaN or infinity",
        ),
        (
            lambda t: t.update({key: t[key].char() for key in t if key == "model.norm.weight"}),
            "model.norm.weight: numbers of type int8",
        ),
        (
            lambda t: t.update({key: t[key].to(torch.float8_e4m3fn) for key in t if key == "model.norm.weight"}),
            "model.norm.weight: numbers of type float8_e4m3fn",
        ),
    ],
)
def test_a_bad_tensor_is_named(written: Path, edit, message: str) -> None:  # type: ignore[no-untyped-def]
    _edit(written, edit)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(HybridModel(TINY), written)


@pytest.mark.parametrize("left", [0, 7, 200, -100])
def test_a_truncated_shard_is_named(written: Path, left: int) -> None:
    """Cut to nothing, in the header's length, in the header, in the numbers."""
    shard = min(written.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{shard.name}: not a whole safetensors file"):
        load_checkpoint(HybridModel(TINY), written)


def test_a_missing_shard_is_named(written: Path) -> None:
    shard = min(written.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        load_checkpoint(HybridModel(TINY), written)


def test_a_tensor_of_a_shard_that_the_index_does_not_name_is_named(written: Path) -> None:
    shard = min(written.glob("*.safetensors"))
    save_file(load_file(shard) | {"model.extra": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match=f"{shard.name}: tensor model.extra is not in {INDEX_FILE}"):
        load_checkpoint(HybridModel(TINY), written)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": ["model.norm.weight"]}', "no weight_map"),
        ('{"weight_map": {"model.norm.weight": 1}}', "model.norm.weight lies in 1, no file beside the index"),
        ('{"weight_map": {"model.norm.weight": "../secret.safetensors"}}', "no file beside the index"),
        ('{"weight_map": {"model.norm.weight": "/secret.safetensors"}}', "no file beside the index"),
    ],
)
def test_a_bad_index_is_named(written: Path, index: str, message: str) -> None:
    (written / INDEX_FILE).write_text(index)
    with pytest.raises(ValueError, match=f"{INDEX_FILE}: .*{message}"):
        load_checkpoint(HybridModel(TINY), written)


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self._path,)


def test_nothing_is_unpickled(written: Path, tmp_path: Path) -> None:
    """Neither beside the shards nor in place of them, under whichever name."""
    sprung = tmp_path / "sprung"
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        torch.save(Trap(sprung), written / name)
    load_checkpoint(HybridModel(TINY), written)
    for shard in written.glob("*.safetensors"):
        torch.save(Trap(sprung), shard)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_checkpoint(HybridModel(TINY), written)
    for path in written.glob("model*.*"):
        path.unlink()
    with pytest.raises(ValueError, match="no safetensors file"):
        load_checkpoint(HybridModel(TINY), written)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap works"


class FirstHalf(ExpertParallel):
    """The place of process 0 of 2, without the other."""

    size = 2  # type: ignore[assignment]
    rank = 0  # type: ignore[assignment]


class SecondHalf(ExpertParallel):
    """The place of process 1 of 2, without the other."""

    size = 2  # type: ignore[assignment]
    rank = 1  # type: ignore[assignment]


def test_a_process_reads_its_own_experts_and_the_dense_part_only(
    model: HybridModel, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    get = TensorFiles.get
    monkeypatch.setattr(TensorFiles, "get", lambda self, key: read.append(key) or get(self, key))
    half = HybridModel(TINY, SecondHalf())
    load_checkpoint(half, written)
    experts = {int(key.split(".experts.")[1].split(".")[0]) for key in read if ".experts." in key}
    assert experts == {2, 3}
    assert len(read) == len(set(read)) == sum(1 for _ in checkpoint_slices(model)) - 2 * 2 * 3
    for theirs, mine in zip(model.layers, half.layers, strict=True):
        assert torch.equal(mine.block_sparse_moe.experts.w13_EGD, theirs.block_sparse_moe.experts.w13_EGD[2:])
        assert torch.equal(mine.block_sparse_moe.experts.w2_EDF, theirs.block_sparse_moe.experts.w2_EDF[2:])


def test_shards_of_other_processes_experts_need_not_even_be_there(tmp_path: Path) -> None:
    """Each process's experts in files of its own, as the exports are written."""
    maps = {}
    for part, parallel in enumerate((None, SecondHalf())):
        model = HybridModel(TINY, parallel)
        initialize(model, seed=0)
        writer = CheckpointWriter(tmp_path, part)
        for key, tensor in checkpoint_slices(model):
            if (".experts." in key and (".experts.2" in key or ".experts.3" in key)) == bool(part):
                writer.add(key, tensor)
        writer.flush()
        maps.update(writer.weight_map)
    finish_checkpoint(tmp_path, TINY, torch.float32, maps, 0)
    for path in tmp_path.glob("model-00001-*"):
        path.unlink()
    first = HybridModel(TINY, FirstHalf())
    load_checkpoint(first, tmp_path)
    with pytest.raises(FileNotFoundError, match="model-00001"):
        load_checkpoint(HybridModel(TINY, SecondHalf()), tmp_path)


LOAD = """
import json, sys, torch
from pathlib import Path
import moe.hf
from moe.dispatch import ExpertParallel
from moe.model import HybridModel

class SecondHalf(ExpertParallel):
    size, rank = 2, 1

directory, copy = Path(sys.argv[1]), moe.hf._copy
torch.set_num_threads(1)

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split()[0][:-1]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}

def growth(parallel, kept):
    model = HybridModel(moe.hf.read_config(directory), parallel)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # has its memory from here on
    before, most = resident(), {"RssAnon": 0, "RssFile": 0}

    def watched(source, target, where):
        if kept is not None:
            kept.append(source.clone())
        copy(source, target, where)
        most.update({kind: max(number, resident()[kind] - before[kind]) for kind, number in most.items()})

    moe.hf._copy = watched
    moe.hf.load_checkpoint(model, directory)
    return most

print(json.dumps({"whole": growth(None, None), "half": growth(SecondHalf(), None), "kept": growth(None, [])}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_about_one_tensor_and_touches_no_other_experts_bytes(tmp_path: Path) -> None:
    """At most 1.5 times the largest, of 16 MiB, beside the model; keeping all would take 3.5 times.

    The files are mapped, so what was read of them is what of the mapping lies in memory: all, but for half the experts
    in the case of one of two processes. The system maps up to 64 KiB around what is read.
    """
    config = replace(TINY, hidden_size=256, vocab_size=16 * 1024, expert_intermediate_size=1024)
    writer = CheckpointWriter(tmp_path, part=0)
    model = HybridModel(config)
    initialize(model, seed=0)
    for key, tensor in checkpoint_slices(model):
        writer.add(key, tensor)
    writer.flush()
    finish_checkpoint(tmp_path, config, torch.float32, writer.weight_map, writer.num_bytes)
    largest = 16 * 2**20
    assert writer.num_bytes > 3.5 * largest

    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, capture_output=True, text=True)
    grown = json.loads(done.stdout)
    assert grown["whole"]["RssAnon"] < 1.5 * largest
    assert grown["kept"]["RssAnon"] > 3 * largest
    experts = 4 * config.num_layers * config.num_experts * config.num_expert_params
    assert grown["whole"]["RssFile"] > 0.97 * writer.num_bytes
    assert grown["half"]["RssFile"] < 1.03 * (writer.num_bytes - experts / 2)
