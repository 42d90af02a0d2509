from __future__ import annotations

import copy
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from huggingface_hub import ModelCard

from moe.config import PRESETS
from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.data.tokenise import train_bpe
from ray_jobs.evaluate.results import Metric
from ray_jobs.fence import Fence
from ray_jobs.run_directory import RunDirectory
from ray_jobs.train.export import committed_export, export
from ray_jobs.train.model_card import CARD_FILE, model_card, write_model_card
from service.spec.job import JobSpec
from tests.moe.conftest import TINY
from tests.train.test_report import Story, report_of

ROWS = {"rows_read": 1000, "rows_rejected": 11, "rows_contaminated": 12, "rows_over_cap": 13}
DUPLICATES = {"exact_duplicates": 14, "near_duplicates": 15, "rows_kept": 935}
SOURCE = {"name": "sums", "category": "math", "files": 1} | ROWS | DUPLICATES
MIX = {"category": "math", "asked_fraction": 0.25, "fraction": 0.2412, "stopped_by": "supply", "available": 940}
PACKING = {"rows": 77, "bound_rows": 76, "sequence_length": 64, "documents": 930, "tokens": 4800, "fill": 0.974}
MANIFEST = {
    "hash": "0123456789abcdef",
    "corpus": "fedcba9876543210",
    "sources": [SOURCE],
    "decontamination": {"ngram_words": 13, "benchmarks": [{"name": "gsm8k", "rows": 12}]},
    "mixture_by": "tokens",
    "mixture": [MIX | {"examples": 931, "tokens": 4800, "trained_tokens": 2345}],
    "packing": PACKING | {"trained_tokens": 2345, "trained_fraction": 0.4885},
}
EXPORT = {
    "bytes": 4_567_890,
    "files": 3,
    "dtype": "bfloat16",
    "checksums_sha256": "ab" * 32,
    "tensors": 88,
    "experts_per_layer": 8,
    "logits_compared": 81920,
    "attempt": 2,
    "step": 3,
    "environment": {"workers": 2, "device": "CPU", "versions": {"torch": "9.8.7", "ray": "6.5.4"}},
}
CARD = {
    "license": "apache-2.0",
    "base_model": "org/base-model",
    "language": ["en", "code"],
    "description": "Answers sums.",
    "authors": ["A. Musher"],
}


@pytest.fixture
def report(tmp_path: Path, job_document: dict[str, Any]) -> dict[str, Any]:
    run = RunDirectory(f"{tmp_path}/secret-place/job-1")
    for when, loss in (("before", 4.25), ("after", 3.125)):
        run.write_json(f"evals/{when}-held-out.json", {"step": 0, "loss": {"math": loss}})
    story = Story(run)
    story.tell(0, 1, "train.started", "train", workers=[{"node_id": "node-secret"}], frozen_bytes=0)
    story.step(2, 1, 1, 4.0)
    return report_of(run, job_document) | {"data": MANIFEST, "export": EXPORT}


def card_of(document: dict[str, Any], report: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    text = model_card(JobSpec.model_validate(document), report, PRESETS["quickstart"])
    _, front, body = text.split("---\n", 2)
    assert ModelCard(text).data.to_dict() == yaml.safe_load(front)
    return yaml.safe_load(front), body


def test_the_front_matter_is_the_hubs(job_document: dict[str, Any], report: dict[str, Any]) -> None:
    job_document["model"]["card"] = CARD
    hub = {"name": "hub", "category": "math", "form": "messages", "uri": "hf://datasets/org/sums@main/train/*.parquet"}
    job_document["data"]["sources"].append(hub)
    report["evaluation"] = [
        {"task": "gsm8k", "when": when, "metrics": {"exact_match": asdict(Metric.of(correct))}}
        for when, correct in (("before", [0.0, 0.0]), ("step-4", [1.0, 0.0]), ("after", [1.0, 0.0]))
    ]
    front, body = card_of(job_document, report)
    assert (front["license"], front["base_model"], front["language"]) == (
        "apache-2.0",
        "org/base-model",
        ["en", "code"],
    )
    assert "license_name" not in front
    assert (front["pipeline_tag"], front["library_name"]) == ("text-generation", "sleddog")
    assert front["datasets"] == ["org/sums"]
    [model] = front["model-index"]
    assert model["name"] == "small"
    results = [(result["dataset"]["name"], result["metrics"][0]) for result in model["results"]]
    assert [(name, metric["type"], metric["value"]) for name, metric in results] == [
        ("held-out conversations, math", "loss", 3.125),
        ("gsm8k", "exact_match", 0.5),
    ]
    assert "| gsm8k | exact_match | 0.0000 | 0.5000 |" in body
    assert "It was measured on no benchmark" not in body


@pytest.mark.parametrize(
    ("card", "front", "body"),
    [
        ({}, {"license": "other", "license_name": "unknown"}, "- Licence: unknown\n"),
        (
            {"license": "other", "license_name": "Mine", "license_link": "LICENSE"},
            {"license": "other", "license_name": "Mine", "license_link": "LICENSE"},
            "- Licence: [Mine](LICENSE)\n",
        ),
        ({"license": "mit"}, {"license": "mit"}, "- Licence: mit\n"),
    ],
)
def test_a_licence_is_what_the_spec_says_or_unknown(
    card: dict[str, Any], front: dict[str, str], body: str, job_document: dict[str, Any], report: dict[str, Any]
) -> None:
    job_document["model"]["card"] = card
    actual, text = card_of(job_document, report)
    assert {key: value for key, value in actual.items() if key.startswith("license")} == front
    assert body in text


def test_the_body_tells_of_data_training_and_measurements(job_document: dict[str, Any], report: dict[str, Any]) -> None:
    job_document["model"]["card"] = CARD
    job_document["data"]["sources"][0]["license"] = "cc-by | 4.0"
    _, body = card_of(job_document, report)
    for part in (
        "Answers sums.",
        "- Authors: A. Musher\n",
        "random weights in the shape of the preset `quickstart`",
        "4 layers",
        "8 experts of which 2",
        r"| sums | math | cc-by \| 4.0 | 1,000 | 11 | 12 | 13 | 14 | 15 | 935 |",
        "similarity of 0.7",
        "share 13 words in a row with a benchmark were removed: gsm8k 12.",
        "| math | 25.0% | 24.1% | 931 | 4,800 | 2,345 |",
        "77 rows of\n64 tokens, 97.4% full",
        "| steps | 1, 0.333333 epochs |",
        "| learning rate | 0.001 at most, after a warm-up of 1 step, then cosine to 0 |",
        "| workers | 2 on 1 node, CPU; 2 share one set of experts |",
        "| versions | torch 9.8.7, ray 6.5.4 |",
        "| math | 4.2500 | 3.1250 |",
        "Balance loss at the last step: 0.0400 in sum over the layers; 0.0400 with evenly",
        "It was measured on no benchmark",
        "neither facts nor language",
        f"| spec, SHA-256 | `{JobSpec.model_validate(job_document).sha256()}` |",
        "| corpus | `fedcba9876543210` |",
        "| packed rows | `0123456789abcdef` |",
        f"| `checksums.json`, SHA-256 | `{'ab' * 32}` |",
        "| job | job-1, attempt 2, step 3 |",
    ):
        assert part in body, part


def test_the_card_says_what_was_not_done(job_document: dict[str, Any], report: dict[str, Any]) -> None:
    job_document["data"]["dedup"] = None
    report["data"] = copy.deepcopy(MANIFEST) | {"decontamination": None}
    report["data"]["mixture"][0]["asked_fraction"] = None
    report["held_out"] = {"before": {}, "after": {}}
    front, body = card_of(job_document, report)
    assert "model-index" not in front
    assert "| math | all | 24.1% |" in body
    for part in ("Duplicates were not looked for", "benchmarks was not looked for", "No conversation was held out"):
        assert part in body


def test_no_path_host_or_key_is_in_the_card(job_document: dict[str, Any], report: dict[str, Any]) -> None:
    job_document["model"] = {"base": "/secret-place/models/arctic-base"}
    job_document["data"]["sources"][0]["uri"] = "s3://secret-key:secret-word@secret-host/secret-bucket/rows.jsonl"
    identity = {"kind": "identity", "name": "who", "facts": {"name": "N", "maker": "M"}}
    identity["paraphrase"] = {"base_url": "http://secret-host:8000/v1", "model": "m", "api_key_env": "SECRET_ENV"}
    job_document["data"]["sources"].append(identity)
    report["export"] = EXPORT | {"path": "s3://secret-bucket/job-1/exports/attempt-2-f"}
    front, body = card_of(job_document, report)
    assert "fine-tuned from arctic-base with Sleddog" in body
    assert "base_model" not in front
    assert "secret" not in f"{front}{body}".lower()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer fits its vocabulary."""
    (tmp_path / "tokenizer").mkdir()
    train_bpe(["What is 1 plus 1?"] * 9, 300, tmp_path / "tokenizer")
    model = HybridModel(replace(TINY, vocab_size=300)).bfloat16()
    initialize(model, seed=0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    run = RunDirectory(f"{tmp_path}/run")
    export(model, tmp_path / "tokenizer", run, attempt=1, step=3, fence=Fence(run, 1, 1))
    dist.destroy_process_group()
    document = committed_export(RunDirectory(f"{tmp_path}/run"))
    assert document is not None
    return Path(document["path"])


def test_the_cards_own_code_loads_the_checkpoint_it_lies_in(
    exported: Path, job_document: dict[str, Any], report: dict[str, Any]
) -> None:
    report["export"] = EXPORT | {"path": str(exported)}
    write_model_card(JobSpec.model_validate(job_document), report, PRESETS["quickstart"])
    blocks = re.findall(r"```python\n(.*?)```", (exported / CARD_FILE).read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"directory": str(exported)}
    exec("\n".join(blocks), names)
    assert names["model"].lm_head.weight.dtype == torch.bfloat16
    assert names["prompt"][0] == names["tokenizer"].bos_token_id
    assert len(names["answer"]) > 0
