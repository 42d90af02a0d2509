from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.hf import CONFIG_FILE, CheckpointWriter, checkpoint_slices, finish_checkpoint
from moe.model import HybridModel
from ray_jobs.train.architecture import load_base, model_config
from service.errors import CheckpointError, InvalidSpecError, SleddogError, SourceNotFoundError
from service.spec.job import JobSpec
from tests.moe.conftest import TINY, tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    writer = CheckpointWriter(directory, part=0)
    for key, tensor in checkpoint_slices(tiny_model()):
        writer.add(key, tensor)
    writer.flush()
    finish_checkpoint(directory, TINY, torch.float32, writer.weight_map, writer.num_bytes)
    return directory


def spec_from(job_document: dict[str, Any], base: Path | str) -> JobSpec:
    return JobSpec.model_validate(job_document | {"model": {"base": str(base)}})


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_checkpoint_is_read_by_path_and_by_file_url(job_document: dict[str, Any], base: Path, scheme: str) -> None:
    spec = spec_from(job_document, f"{scheme}{base}")
    assert model_config(spec, TINY.vocab_size) == TINY
    model = HybridModel(TINY)
    load_base(model, spec)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


def refuse(job_document: dict[str, Any], base: Path | str, error: type[SleddogError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        model_config(spec_from(job_document, base), TINY.vocab_size)
    assert caught.value.field == "model.base"


def test_a_base_that_cannot_be_read_is_named(job_document: dict[str, Any], base: Path) -> None:
    refuse(job_document, "s3://models/base", InvalidSpecError, r"s3://models/base is not in a filesystem of the nodes")
    refuse(job_document, base / "nowhere", SourceNotFoundError, "nowhere/config.json")
    refuse(job_document, base / CONFIG_FILE, SourceNotFoundError, "config.json")
    for content, message in {
        "": r"config\.json: not JSON",
        "[1]": r"config\.json: not a JSON object",
        "{}": r"config\.json has no",
        json.dumps(TINY.to_hf() | {"hidden_act": "gelu"}): "hidden_act",
        json.dumps(TINY.to_hf() | {"hidden_size": "wide"}): "hidden_size is 'wide', no whole number",
    }.items():
        (base / CONFIG_FILE).write_text(content)
        refuse(job_document, base, CheckpointError, message)


@pytest.mark.parametrize("damage", ["cut", "gone", "no weight_map", "key of another file"])
def test_weights_that_cannot_be_read_are_the_bases_fault(job_document: dict[str, Any], base: Path, damage: str) -> None:
    [shard], [index] = base.glob("*.safetensors"), base.glob("*.index.json")
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif damage == "gone":
        shard.unlink()
    elif damage == "no weight_map":
        index.write_text("{}")
    else:
        key = "model.norm.weight"
        torch_file = base / "other.safetensors"
        torch_file.write_bytes(shard.read_bytes().replace(key.encode(), b"model.norm.weighs"))
        index.write_text(index.read_text().replace(f'"{key}": "{shard.name}"', f'"{key}": "{torch_file.name}"'))
    with pytest.raises(SourceNotFoundError if damage == "gone" else CheckpointError) as caught:
        load_base(HybridModel(TINY), spec_from(job_document, base))
    assert caught.value.field == "model.base"
