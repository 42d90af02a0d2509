from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from service.client.spec_file import load_spec, load_sweep
from service.errors import InvalidSpecError
from service.spec.base import field_errors
from service.spec.data import DataSpec
from service.spec.job import JobSpec
from service.spec.source import SourceSpec
from tests.conftest import set_at

ROOT = Path(__file__).parents[2]
BENCHMARK = {"name": "b", "uri": "file:///b.jsonl", "form": {"kind": "texts", "columns": ["q"]}}
IDENTITY = {"kind": "identity", "name": "who", "category": "math", "facts": {"name": "N", "maker": "M"}}
GSM8K = {"kind": "gsm8k", "uri": "file:///gsm8k.jsonl"}
HUMANEVAL = {"kind": "humaneval", "uri": "file:///humaneval.jsonl"}
CHOICES = {"kind": "multiple_choice", "uri": "file:///hhh.jsonl"}
JUDGE = {"base_url": "http://judge/v1", "model": "m"}
MT_BENCH = {"kind": "mt_bench", "uri": "file:///question.jsonl", "judge": JUDGE}
TEXTS_COLUMNS = "data.decontaminate.against.0.form.columns"


def test_defaults_are_the_recipe(job_document: dict[str, Any]) -> None:
    del job_document["train"], job_document["data"]["sequence_length"], job_document["parallel"]
    spec = JobSpec.model_validate(job_document)
    train = spec.train
    assert (train.learning_rate, train.warmup_fraction, train.schedule, train.epochs) == (2e-5, 0.05, "cosine", 2)
    assert (train.global_batch_rows, train.micro_batch_rows, train.balance_loss_coefficient) == (256, 1, 0.01)
    assert spec.data.sequence_length == 4096
    assert spec.data.dedup is not None
    assert spec.data.dedup.threshold == 0.7


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("train.epoch", 2, "train.epoch"),
        ("train.epochs", -1, "train.epochs"),
        ("train.learning_rate", "fast", "train.learning_rate"),
        ("train.adam_betas", [0.9, 1.5], "train.adam_betas"),
        ("train.global_batch_rows", 3, "train.global_batch_rows"),
        ("model.base.name", "gpt-5", "model.base.name"),
        ("model.base", {"kind": "magic"}, "model.base"),
        ("model.tokenizer", None, "model.tokenizer"),
        ("model.card.license", "Apache 2.0", "model.card.license"),
        ("model.card", {"license": "other"}, "model.card.license_name"),
        ("model.card", {"license": "mit", "license_link": "LICENSE"}, "model.card.license_link"),
        ("model.tokenizer.vocab_size", 3, "model.tokenizer.vocab_size"),
        ("data.sources.0.uri", "rows.jsonl", "data.sources.0.uri"),
        ("evaluate.tasks", [{"kind": "gsm9k"}], "evaluate.tasks.0"),
        ("evaluate.tasks", [GSM8K | {"uri": "test.jsonl"}], "evaluate.tasks.0.uri"),
        ("evaluate.tasks", [GSM8K | {"limit": 0}], "evaluate.tasks.0.limit"),
        ("evaluate.tasks", [GSM8K | {"few_shot": {"uri": "x.jsonl"}}], "evaluate.tasks.0.few_shot.uri"),
        ("evaluate.tasks", [GSM8K, GSM8K], "evaluate.tasks.1.name"),
        ("evaluate.tasks", [HUMANEVAL | {"num_samples": 2}], "evaluate.tasks.0.temperature"),
        ("evaluate.tasks", [HUMANEVAL | {"pass_at": [1, 2]}], "evaluate.tasks.0.pass_at.1"),
        ("evaluate.tasks", [HUMANEVAL | {"pass_at": []}], "evaluate.tasks.0.pass_at"),
        ("evaluate.tasks", [CHOICES | {"form": "essay"}], "evaluate.tasks.0.form"),
        ("evaluate.tasks", [CHOICES | {"form": {"choices": "c", "answer": "a"}}], "evaluate.tasks.0.form.question"),
        ("evaluate.tasks", [MT_BENCH | {"judge": {"model": "m"}}], "evaluate.tasks.0.judge.base_url"),
        (
            "evaluate.tasks",
            [MT_BENCH | {"judge": JUDGE | {"api_key_env": "sk-7"}}],
            "evaluate.tasks.0.judge.api_key_env",
        ),
        ("evaluate.tasks", [{"kind": "lm_eval", "tasks": []}], "evaluate.tasks.0.tasks"),
        ("evaluate.every_steps", 0, "evaluate.every_steps"),
        ("data.sources.0.uri", "ftp://host/rows.jsonl", "data.sources.0.uri"),
        ("data.sources.0.form", "poem", "data.sources.0.form"),
        ("data.sources.0.form", {"kind": "poem"}, "data.sources.0.form"),
        ("data.sources.0.form", 3, "data.sources.0.form"),
        ("data.sources.0.form", {"kind": "columns", "prompt": "q"}, "data.sources.0.form.completion"),
        ("data.sources.0.form", {"kind": "columns", "prompt": "{q", "completion": "a"}, "data.sources.0.form.prompt"),
        (
            "data.sources.0.form",
            {"kind": "columns", "prompt": "{q!r}", "completion": "a"},
            "data.sources.0.form.prompt",
        ),
        (
            "data.sources.0.form",
            {"kind": "columns", "prompt": "{{q}}", "completion": "a"},
            "data.sources.0.form.prompt",
        ),
        ("data.sources.0.form", {"kind": "turns", "turns": ""}, "data.sources.0.form.turns"),
        ("data.sources.0.form", {"kind": "turns", "turns": "t", "who": "x"}, "data.sources.0.form.who"),
        (
            "data.sources.0.form",
            {"kind": "turns", "turns": "t", "roles": {"A": "robot"}},
            "data.sources.0.form.roles.A",
        ),
        ("data.sources.0.form", {"kind": "turns", "turns": "t", "roles": {"A": "user"}}, "data.sources.0.form.roles"),
        ("data.sources.0.form", {"kind": "tree", "threads": "some"}, "data.sources.0.form.threads"),
        ("data.sources.0.form", {"kind": "tree", "languages": []}, "data.sources.0.form.languages"),
        ("data.sources.0.form", {"kind": "tree", "roles": {"A": "user"}}, "data.sources.0.form.roles"),
        ("data.sources.0.header", [], "data.sources.0.header"),
        ("data.sources.0.form", {"kind": "texts", "columns": ["a"]}, "data.sources.0.form"),
        ("data.sources.0.kind", "magic", "data.sources.0"),
        ("data.sources", [{"name": "a", "category": "c", "form": "alpaca"}], "data.sources.0.uri"),
        ("data.sources", [IDENTITY | {"num_examples": 0}], "data.sources.0.num_examples"),
        ("data.sources", [IDENTITY | {"facts": {"name": "", "maker": "M"}}], "data.sources.0.facts.name"),
        ("data.sources", [IDENTITY | {"use_packaged_templates": False}], "data.sources.0.templates"),
        ("data.sources", [IDENTITY | {"frames": ["{answer}"]}], "data.sources.0.frames.0"),
        ("data.decontaminate", {"against": []}, "data.decontaminate.against"),
        ("data.decontaminate", {"against": [BENCHMARK, BENCHMARK]}, "data.decontaminate.against.1.name"),
        ("data.decontaminate", {"against": [BENCHMARK], "ngram_words": 4}, "data.decontaminate.ngram_words"),
        ("data.decontaminate", {"against": [BENCHMARK | {"uri": "x"}]}, "data.decontaminate.against.0.uri"),
        ("data.decontaminate", {"against": [BENCHMARK | {"form": {"kind": "texts", "columns": []}}]}, TEXTS_COLUMNS),
        ("data.sources.0.replace", {"": "x"}, "data.sources.0.replace"),
        ("data.sources.0.system_prompt", "", "data.sources.0.system_prompt"),
        ("data.sources.0.max_rows", 0, "data.sources.0.max_rows"),
        ("data.sources.0.uri", "file://rows.jsonl", "data.sources.0.uri"),
        ("data.sources.0.uri", "memory://rows.jsonl", "data.sources.0.uri"),
        ("data.sources", [], "data.sources"),
        ("data.mixture", {1: 2}, "data.mixture.1"),
        ("model.base", "", "model.base"),
        ("model.base", "relative/path", "model.base"),
        ("model.tokenizer", {"kind": "pretrained", "path": "relative"}, "model.tokenizer.path"),
        ("data.mixture", {"math": 1, "code": 1}, "data.mixture.code"),
        ("data.mixture", {"math": 0}, "data.mixture"),
        ("data.mixture", {"math": -1}, "data.mixture.math"),
        ("data.leave_out", ["flour"], "data.leave_out.0"),
        ("data.leave_out", ["sums"], "data.leave_out"),
        ("data.sources.0.hold_out", True, "data.sources"),
        ("data.seed", -1, "data.seed"),
        ("data.mixture", {"math": {"cap": 3}}, "data.mixture.math.share"),
        ("data.mixture", {"math": {"share": 1, "max_epochs": 0.5}}, "data.mixture.math.max_epochs"),
        ("data.mixture", {"math": {"share": 1, "cap": 0}}, "data.mixture.math.cap"),
        ("data.mixture", {"math": "much"}, "data.mixture.math"),
        ("data.mixture", [1], "data.mixture"),
        ("data.mixture_by", "rows", "data.mixture_by"),
        ("data.sources.0.weight", 0, "data.sources.0.weight"),
        ("data.sources.0.epochs", 0, "data.sources.0.epochs"),
        ("data.on_bad_row", "ignore", "data.on_bad_row"),
        ("parallel.expert_parallel_size", 3, "parallel.expert_parallel_size"),
        ("name", "No Spaces!", "name"),
        ("seed", float("nan"), "seed"),
    ],
)
def test_a_bad_value_is_named_by_its_path(job_document: dict[str, Any], path: str, value: Any, field: str) -> None:
    set_at(job_document, path, value)
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(job_document)
    assert [error.field for error in field_errors(caught.value.errors(), job_document)] == [field]


def test_a_header_needs_a_format_that_may_lack_one(job_document: dict[str, Any]) -> None:
    job_document["data"]["sources"][0] |= {"format": "parquet", "header": ["a"]}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(job_document)
    [error] = field_errors(caught.value.errors(), job_document)
    assert error == ("data.sources.0.header", "a parquet file names its columns itself")


def test_a_mapping_survives_the_store(job_document: dict[str, Any]) -> None:
    form = {"kind": "turns", "turns": "utterances", "roles": {"b": "assistant", "a": "user"}}
    job_document["data"]["sources"][0]["form"] = form
    spec = JobSpec.model_validate(job_document)
    assert JobSpec.model_validate_json(spec.canonical_json()) == spec


def test_experts_must_divide(job_document: dict[str, Any]) -> None:
    job_document["parallel"] = {"num_workers": 3, "expert_parallel_size": 3}
    job_document["train"]["global_batch_rows"] = 3
    with pytest.raises(ValidationError, match="does not divide the 8 experts"):
        JobSpec.model_validate(job_document)


def test_equal_specs_have_equal_hashes(job_document: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(job_document)
    explicit = JobSpec.model_validate(spec.model_dump(mode="json"))
    assert explicit.sha256() == spec.sha256()
    assert spec.model_copy(update={"seed": 1}).sha256() != spec.sha256()


SHIPPED = [*sorted((ROOT / "examples").glob("**/*.yaml")), ROOT / "deploy/local-cluster/job.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_spec_parses(path: Path) -> None:
    spec = load_sweep(path).base if path.name == "sweep.yaml" else load_spec(path)
    read = [source for source in spec.data.sources if isinstance(source, SourceSpec)]
    assert read
    assert all(source.uri.startswith((f"file://{ROOT}", "s3://")) for source in read)


def test_the_spec_in_the_guide_to_data_parses(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "data.md").read_text()
    (tmp_path / "job.yaml").write_text(guide.partition("```yaml\n")[2].partition("```")[0])
    data = load_spec(tmp_path / "job.yaml").data
    assert [source.kind for source in data.sources] == [*["files"] * 4, "identity"]
    of_report = {"rejected_rows_url", "rejected_reasons", "unfit_rows_url", "too_long", "no_trained_token"}
    of_reproduction = {"data_changed", "hash"}
    named = set(re.findall(r"`(\w+)`", guide)) - {"data", "skip", "exact"} - of_report - of_reproduction
    known = str(DataSpec.model_json_schema())
    assert [name for name in sorted(named) if f"'{name}'" not in known] == [], "fields that the guide speaks of"


def test_the_spec_in_the_guide_to_evaluation_parses(job_document: dict[str, Any], tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "evaluate.md").read_text()
    job_document |= yaml.safe_load(guide.partition("```yaml\n")[2].partition("```")[0])
    (tmp_path / "job.json").write_text(json.dumps(job_document))
    kinds = [task.kind for task in load_spec(tmp_path / "job.json").evaluate.tasks]
    assert kinds == ["gsm8k", "humaneval", "multiple_choice", "mt_bench", "lm_eval"]
    assert [kind for kind in kinds if f"| `{kind}` |" not in guide] == []


def test_spec_files_resolve_paths_against_themselves(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        """
        name = "toml"
        model.base = "checkpoints/arctic"
        [[data.sources]]
        name = "a"
        category = "code"
        form = "alpaca"
        uri = "rows/*.jsonl"
        [[data.decontaminate.against]]
        name = "b"
        form = "alpaca"
        uri = "../../bench.jsonl"
        """
    )
    spec = load_spec(tmp_path / "job.toml")
    assert spec.data.decontaminate is not None
    assert spec.data.decontaminate.against[0].uri == f"file://{tmp_path.parents[1]}/bench.jsonl"
    assert spec.data.sources[0].uri == f"file://{tmp_path}/rows/*.jsonl"
    assert spec.model.base.model_dump() == {"kind": "checkpoint", "path": f"{tmp_path}/checkpoints/arctic"}


def test_spec_file_errors_name_file_or_field(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(InvalidSpecError, match=r"broken\.yaml cannot be parsed"):
        load_spec(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("name: x")
    with pytest.raises(InvalidSpecError, match=r"2 faults:\n  model: Field required\n  data: Field required"):
        load_spec(tmp_path / "empty.yaml")
    with pytest.raises(InvalidSpecError, match="a spec ends in"):
        load_spec(tmp_path / "job.txt")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.yaml", b"", "is no mapping"),
        ("a.yaml", b"- name: x", "is no mapping"),
        ("a.yaml", b"name: 2024-13-45", "cannot be parsed: month must be"),
        ("a.yaml", b"name: \xff", "cannot be parsed: 'utf-8' codec"),
        ("a.yaml", b"a: &a [*a", "cannot be parsed"),
        ("a.toml", b"name = ", "cannot be parsed"),
        ("a.json", b'{"seed": ' + b"1" * 5000 + b"}", "cannot be parsed"),
        ("a.json", b"[" * 100_000, "cannot be parsed"),
        ("A.JSON", b'\xef\xbb\xbf{"name": "x"}', "2 faults"),
    ],
)
def test_odd_spec_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidSpecError) as caught:
        load_spec(tmp_path / name)
    assert reason in str(caught.value)
    assert name in str(caught.value)


def test_paths_of_benchmarks_are_taken_from_the_specs_file(job_document: dict[str, Any], tmp_path: Path) -> None:
    few_shot = GSM8K | {"uri": "test.jsonl", "few_shot": {"uri": "train.jsonl"}}
    harness = {"kind": "lm_eval", "tasks": ["own"], "include_path": "tasks"}
    job_document["evaluate"]["tasks"] = [few_shot, harness, HUMANEVAL]
    (tmp_path / "job.json").write_text(json.dumps(job_document))
    tasks: Any = load_spec(tmp_path / "job.json").evaluate.tasks
    uris = [tasks[0].uri, tasks[0].few_shot.uri, tasks[2].uri]
    assert uris == [f"file://{tmp_path}/test.jsonl", f"file://{tmp_path}/train.jsonl", HUMANEVAL["uri"]]
    assert tasks[1].include_path == f"{tmp_path}/tasks"


def test_a_spec_and_its_copy_from_the_store_are_written_alike(job_document: dict[str, Any]) -> None:
    """Prepared data is named by a hash of what is written: 1 and 1.0 would be two."""
    job_document["data"]["mixture"] = {"math": {"share": 1}, "identity": 1}
    paraphrase = {"base_url": "http://localhost:1/v1", "model": "m"}
    facts = {"name": "Husky", "maker": "Nordic Sled Works"}
    job_document["data"]["sources"].append(
        {"kind": "identity", "name": "who", "facts": facts, "paraphrase": paraphrase}
    )
    spec = JobSpec.model_validate(job_document)
    copy = JobSpec.model_validate_json(spec.model_dump_json())
    assert json.dumps(spec.model_dump()) == json.dumps(copy.model_dump())
