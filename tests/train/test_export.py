from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import ray_jobs.train.export
import ray_jobs.train.read_back
from moe.dispatch import ExpertParallel
from moe.hf import INDEX_FILE, checkpoint_slices, load_checkpoint, read_config
from moe.model import HybridModel
from ray_jobs.data.tokenise import CHAT_TEMPLATE, ChatTokenizer, train_bpe
from ray_jobs.fence import Fence, claim_start
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.export import commit_export, committed_export, committed_step, export, remove_superseded
from ray_jobs.train.read_back import CHECKSUMS_FILE, describe_tensor
from service.errors import CheckpointError, SupersededError
from service.rows.formats import Turn
from tests.moe.conftest import TINY, tiny_model
from tests.processes import run_processes

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
OTHER_EXPERT = "model.layers.1.block_sparse_moe.experts.3.w1.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    train_bpe(["What is 1 plus 1?"] * 9, 300, tmp_path / "tokenizer")
    return tmp_path


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Killed(BaseException):
    """The end of a process, for a test."""


def run_export(directory: Path, attempt: int = 1, dies_in: str | None = None) -> None:
    """One try, killed when it calls the named function."""

    def die(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        if dies_in is not None:
            patch.setattr(ray_jobs.train.export, dies_in, die)
        run = RunDirectory(f"{directory}/run")
        export(tiny_model(), directory / "tokenizer", run, attempt, step=7, fence=Fence(run, attempt, 1))


def assert_killed(directory: Path, attempt: int, dies_in: str) -> None:
    with pytest.raises(Killed):
        run_export(directory, attempt, dies_in)


def exported(directory: Path) -> Path:
    """The committed checkpoint, which is the model's."""
    document = committed_export(RunDirectory(f"{directory}/run"))
    assert document is not None
    path = Path(document["path"])
    assert read_config(path) == TINY
    model = HybridModel(TINY)
    load_checkpoint(model, path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
    assert document["bytes"] == sum(tensor.numel() * 4 for tensor in model.parameters())
    return path


def stand_in(run: RunDirectory, name: str, attempt: int, *, is_committed: bool = True) -> Path:
    """A directory with an index, as if a try had written it."""
    path = Path(run.join("exports", name))
    path.mkdir(parents=True)
    (path / INDEX_FILE).write_text("{}")
    if is_committed:
        commit_export(run, {"path": str(path), "attempt": attempt, "step": 7})
    return path


def left(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in Path(run.join("exports")).iterdir())


@pytest.mark.parametrize("job", ["job-1", "job [a*]?"])
def test_the_highest_attempts_export_counts_in_whichever_order_they_commit(tmp_path: Path, job: str) -> None:
    run = RunDirectory(f"{tmp_path}/{job}")
    assert committed_step(run) is None
    for name, attempt, standing in (("attempt-2-a", 2, "2-a"), ("attempt-1-b", 1, "2-a"), ("attempt-3-d", 3, "3-d")):
        stand_in(run, name, attempt)
        document = committed_export(run)
        assert document is not None
        assert document["path"].endswith(standing)
    assert committed_step(run) == 7


def test_what_does_not_count_is_removed_and_no_higher_attempts_try(tmp_path: Path) -> None:
    run = RunDirectory(f"{tmp_path}/job")
    remove_superseded(run, 1)
    stand_in(run, "attempt-1-a", 1, is_committed=False)
    remove_superseded(run, 1)
    assert left(run) == ["attempt-1-a"], "while nothing is committed, nothing goes"
    stand_in(run, "attempt-1-b", 1)
    stand_in(run, "attempt-2-c", 2)
    stand_in(run, "attempt-2-d", 2, is_committed=False)
    stand_in(run, "attempt-3-e", 3, is_committed=False)
    (tmp_path / "job" / "exports" / "mine").mkdir()
    remove_superseded(run, 1)
    of_two = ["attempt-2-c", "attempt-2-c.json", "attempt-2-d", "attempt-3-e", "mine"]
    assert left(run) == of_two, "an attempt that was overtaken leaves the higher ones alone"
    remove_superseded(run, 2)
    assert left(run) == ["attempt-2-c", "attempt-2-c.json", "attempt-3-e", "mine"]


def test_a_commit_that_comes_after_its_export_was_removed_counts_for_nothing(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    late = stand_in(run, "attempt-2-a", 2, is_committed=False)
    stand_in(run, "attempt-2-b", 2)
    remove_superseded(run, 2)
    commit_export(run, {"path": str(late), "attempt": 2, "step": 9})
    document = committed_export(run)
    assert document is not None
    assert document["path"].endswith("attempt-2-b")


@pytest.mark.usefixtures("alone")
def test_a_torn_export_never_looks_whole_and_harms_no_other(directory: Path) -> None:
    exports = directory / "run" / "exports"
    assert_killed(directory, 1, "write_file")
    [torn] = exports.iterdir()
    assert list(torn.glob("*.safetensors"))
    assert not (torn / INDEX_FILE).exists(), "the index is written last"
    assert_killed(directory, 1, "commit_export")
    assert len(list(exports.glob(f"*/{INDEX_FILE}"))) == 1
    assert not list(exports.glob("*.json")), "whole, but not committed"
    run_export(directory, 1)
    first = exported(directory)
    assert len(list(exports.glob("*/"))) == 3, "each try has its own directory"
    assert_killed(directory, 2, "write_file")
    assert exported(directory) == first, "a later try that fails leaves it standing"
    run_export(directory, 2)
    assert exported(directory) != first


@pytest.mark.usefixtures("alone")
def test_workers_that_others_have_replaced_commit_nothing(directory: Path) -> None:
    run = RunDirectory(f"{directory}/run")
    claim_start(run, 1)
    claim_start(run, 1)
    with pytest.raises(SupersededError):
        run_export(directory)
    assert committed_step(run) is None


@pytest.mark.usefixtures("alone")
def test_the_export_says_what_was_compared(directory: Path) -> None:
    run_export(directory)
    document = committed_export(RunDirectory(f"{directory}/run"))
    assert document is not None
    assert document["verified"]
    assert (document["tensors"], document["experts_per_layer"]) == (len(list(checkpoint_slices(tiny_model()))), 4)
    assert (document["logits_compared"], document["max_logit_difference"]) == (4 * 64 * TINY.vocab_size, 0.0)
    assert document["environment"]["versions"]["torch"] == torch.__version__
    checksums = json.loads((Path(document["path"]) / CHECKSUMS_FILE).read_text())
    shards = [load_file(path) for path in Path(document["path"]).glob("*.safetensors")]
    assert checksums["tensors"] == {key: describe_tensor(tensor) for part in shards for key, tensor in part.items()}


@pytest.mark.usefixtures("alone")
def test_an_export_to_an_object_store_is_read_back_from_there(directory: Path) -> None:
    run = RunDirectory("memory://bucket/job")
    export(tiny_model(), directory / "tokenizer", run, attempt=1, step=7, fence=Fence(run, 1, 1))
    assert committed_step(run) == 7
    export(tiny_model(), directory / "tokenizer", run, attempt=2, step=7, fence=Fence(run, 2, 1))
    remove_superseded(run, 2)
    document = committed_export(run)
    assert document is not None
    assert document["attempt"] == 2
    with pytest.raises(CheckpointError, match="no tensor"):
        break_after_upload(directory, drop_from_index, run)


def change_index(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((path / INDEX_FILE).read_text())
    change(index["weight_map"])
    (path / INDEX_FILE).write_text(json.dumps(index))


def change_shard(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    shard = path / json.loads((path / INDEX_FILE).read_text())["weight_map"][EXPERT]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})


def flip_a_bit(path: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EXPERT].view(torch.int32)[0, 0] ^= 1

    change_shard(path, flip)


def swap_experts(path: Path) -> None:
    change_shard(path, lambda t: t.update({EXPERT: t[OTHER_EXPERT], OTHER_EXPERT: t[EXPERT]}))


def swap_experts_in_the_index(path: Path) -> None:
    """One of the two lies in a shard of its own, and the index says that it is the other."""
    [shard] = path.glob("*.safetensors")
    tensors = load_file(shard)
    save_file({EXPERT: tensors.pop(EXPERT)}, path / "model-00001-00000.safetensors", metadata={"format": "pt"})
    save_file(tensors, shard, metadata={"format": "pt"})
    change_index(path, lambda weight_map: weight_map.update({OTHER_EXPERT: "model-00001-00000.safetensors"}))


def cast_an_expert(path: Path) -> None:
    """To a type of the same size, and the same bytes."""
    change_shard(path, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].view(torch.int32)}))


def drop_from_shard(path: Path) -> None:
    change_shard(path, lambda tensors: [tensors.pop(EXPERT)])  # type: ignore[arg-type, return-value]


def drop_from_index(url: str | Path) -> None:
    if isinstance(url, Path):
        change_index(url, lambda weight_map: [weight_map.pop(EXPERT)])  # type: ignore[arg-type, return-value]
        return
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(f"{url}/{INDEX_FILE}")
    index = json.loads(filesystem.cat_file(path))
    del index["weight_map"][EXPERT]
    filesystem.pipe_file(path, json.dumps(index).encode())


def add_an_expert(path: Path) -> None:
    extra = "model.layers.1.block_sparse_moe.experts.4.w1.weight"
    change_index(path, lambda weight_map: weight_map.update({extra: weight_map[EXPERT]}))


def change_the_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text((path / "tokenizer.json").read_text() + " ")


def change_the_top_k(path: Path) -> None:
    (path / "config.json").write_text((path / "config.json").read_text().replace('_per_tok": 2', '_per_tok": 1'))


def break_after_upload(directory: Path, damage: Callable[[Any], None], run: RunDirectory | None = None) -> None:
    """Export, with damage done between writing and reading back."""
    compare = ray_jobs.train.read_back.read_back

    def compare_damaged(model: HybridModel, url: str, *rest: Any) -> dict[str, Any]:
        damage(url if "://" in url else Path(url))
        return compare(model, url, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_jobs.train.export, "read_back", compare_damaged)
        run = run or RunDirectory(f"{directory}/run")
        export(tiny_model(), directory / "tokenizer", run, 1, 7, fence=Fence(run, 1, 1))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_a_bit, EXPERT),
        (swap_experts, EXPERT),
        (swap_experts_in_the_index, f"model-00000-00000.safetensors: no tensor {EXPERT}"),
        (cast_an_expert, EXPERT),
        (drop_from_shard, f"no tensor {EXPERT}"),
        (drop_from_index, f"{INDEX_FILE}: no tensor {EXPERT}"),
        (add_an_expert, "unknown tensor model.layers.1.block_sparse_moe.experts.4.w1.weight"),
        (change_the_tokenizer, "tokenizer.json differs"),
        (change_the_top_k, "config.json differs"),
        (lambda path: (path / CHECKSUMS_FILE).write_text("{}"), f"{CHECKSUMS_FILE} differs"),
        (lambda path: next(path.glob("*.safetensors")).unlink(), "model-00000-00000.safetensors"),
    ],
)
def test_damage_after_the_upload_is_found_and_named(
    damage: Callable[[Path], None], named: str, directory: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(named)):
        break_after_upload(directory, damage)
    assert committed_export(RunDirectory(f"{directory}/run")) is None


def test_experts_are_counted_in_the_index_and_in_the_gates() -> None:
    layers = [f"model.layers.{layer}.block_sparse_moe" for layer in range(2)]
    index = {f"{layer}.experts.{expert}.w2.weight": "file" for layer in layers for expert in range(3)}
    gates = {f"{layer}.gate.weight": {"shape": [3, 16]} for layer in layers}
    count = ray_jobs.train.read_back._count_experts
    assert count(index | {"model.layers.0.residual_mlp.w2.weight": "file"}, gates) == 3
    del index[f"{layers[1]}.experts.0.w2.weight"]
    with pytest.raises(ValueError, match=r"layers\.1\.block_sparse_moe': 2"):
        count(index, gates)


def skip_a_tensor(model: HybridModel, path: Path) -> None:
    norm = model.norm.weight
    model.norm.weight = torch.nn.Parameter(torch.empty_like(norm))
    load_checkpoint(model, path)
    model.norm.weight = norm


def round_a_tensor(model: HybridModel, path: Path) -> None:
    load_checkpoint(model, path)
    model.norm.weight.detach().mul_(1 + 2**-20)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("load_wrong", [skip_a_tensor, round_a_tensor])
def test_the_logits_tell_a_loader_that_is_wrong(
    load_wrong: Callable[[HybridModel, Path], None], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs.train.read_back, "load_checkpoint", load_wrong)
    with pytest.raises(CheckpointError, match="logits"):
        run_export(directory)


def _export_half(rank: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = tiny_model(ExpertParallel(dist.group.WORLD))
    run = RunDirectory(f"{directory}/run")
    export(model, directory / "tokenizer", run, 1, step=7, fence=Fence(run, 1, 1))
    dist.destroy_process_group()


def test_two_workers_with_half_the_experts_each_export_the_whole(directory: Path) -> None:
    run_processes(_export_half, directory, number=2)
    path = exported(directory)
    document = committed_export(RunDirectory(f"{directory}/run"))
    assert document is not None
    assert (document["files"], document["experts_per_layer"]) == (2, 4)
    assert document["logits_compared"] == 2 * 4 * 64 * TINY.vocab_size
    weight_map = json.loads((path / INDEX_FILE).read_text())["weight_map"]
    assert weight_map[EXPERT] == "model-00001-00000.safetensors"


CONVERSATION = [Turn("system", "Be brief."), Turn("user", "What is 1 plus 1?"), Turn("assistant", "2")]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("named", [{}, {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}])
def test_transformers_renders_a_conversation_as_training_did(named: dict[str, Any], directory: Path) -> None:
    config_file = directory / "tokenizer" / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    del config["tokenizer_class"]
    config_file.write_text(json.dumps(config | named))
    (directory / "tokenizer" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    run_export(directory)
    tokenizer = AutoTokenizer.from_pretrained(exported(directory))
    [trained] = ChatTokenizer(directory / "tokenizer").render([CONVERSATION])
    messages = [turn._asdict() for turn in CONVERSATION]
    assert tokenizer.apply_chat_template(messages, return_dict=False) == trained.tokens.tolist()
    text = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(text, add_special_tokens=False) == trained.tokens[: len(trained.tokens) - 3].tolist()
    written = json.loads((exported(directory) / "tokenizer_config.json").read_text())
    assert (written["tokenizer_class"], "auto_map" in written) == ("PreTrainedTokenizerFast", False)


@pytest.mark.usefixtures("alone")
def test_both_configs_name_the_tokenizers_ends(directory: Path) -> None:
    run_export(directory)
    path = exported(directory)
    generation = GenerationConfig.from_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    for key, expected in (("bos_token_id", 0), ("eos_token_id", 1), ("pad_token_id", 1)):
        assert getattr(generation, key) == config[key] == expected
    generation.validate(strict=True)


def test_transformers_has_no_class_for_the_architecture() -> None:
    """As the model card says; once it has one, the card and this module's tests should use it."""
    assert TINY.to_hf()["model_type"] not in CONFIG_MAPPING_NAMES
