"""The whole preparation on a local Ray: counts, reuse, bad rows, and the same bytes whatever the order of events."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from ray_jobs.data import band_shuffle, corpus_builder
from ray_jobs.data.corpus_builder import CorpusBuilder, _FileTask
from ray_jobs.data.duplicates import DuplicateSearch
from ray_jobs.data.packed_rows import PackedRow, PackedRows
from ray_jobs.data.packing_report import Written
from ray_jobs.data.parquet_files import read_parquet, read_row_groups
from ray_jobs.data.prepare import PreparedData, prepare
from ray_jobs.data.row_set import RowSetWriter
from ray_jobs.data.tasks import INDEX_SCHEMA, tokenise_file
from service.errors import BadRowError, ConflictError, EmptyDataError, InvalidSpecError, SourceNotFoundError
from service.spec.job import JobSpec
from tests.data.conftest import digests

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("cluster"),
    # Ray Data sets its own deprecated fields when it makes its context
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data.context"),
]

WORDS = [f"word{number}" for number in range(300)]


def text(seed: int, size: int = 30) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size))


FACTS = {"name": "Husky", "maker": "Nordic Sled Works"}
LONG_CHAT = {
    "messages": [
        {"role": role, "content": text(n + 900, 20)} for n, role in enumerate(["system", *("user", "assistant") * 9])
    ]
}


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def small_document(folder: Path) -> dict[str, Any]:
    """Two sources: 90 code rows in two files, 20 copies and 10 near copies among them; 60 chat rows of two turns."""
    code = [{"prompt": text(number), "completion": text(1000 + number, 60)} for number in range(60)]
    near = [{**row, "completion": row["completion"] + " more"} for row in code[20:30]]
    write_jsonl(folder / "code-0.jsonl", code)
    write_jsonl(folder / "code-1.jsonl", code[:20] + near)
    chat = [
        {"messages": [{"role": role, "content": text(n + shift, 9)} for shift, role in ((0, "user"), (1, "assistant"))]}
        for n in range(5000, 5180, 3)
    ]
    write_jsonl(folder / "chat.jsonl", chat)
    return {
        "name": "small",
        "model": {
            "base": {"kind": "preset", "name": "quickstart"},
            "tokenizer": {"kind": "train_bpe", "vocab_size": 700},
        },
        "data": {
            "sources": [
                {
                    "name": "snippets",
                    "category": "code",
                    "form": "prompt_completion",
                    "uri": f"file://{folder}/code-*.jsonl",
                },
                {"name": "chat", "category": "general", "form": "messages", "uri": f"file://{folder}/chat.jsonl"},
            ],
            "sequence_length": 512,
            "held_out_fraction": 0.1,
        },
    }


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return small_document(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of all tests that do not mind what others have prepared there."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All stages have something to do: malformed, contaminated and too long rows, one to split, and identity."""
    folder = tmp_path_factory.mktemp("everything")
    document = small_document(folder)
    write_jsonl(folder / "benchmark.jsonl", [{"text": text(1020, 60)}])
    with (folder / "code-1.jsonl").open("a") as file:
        file.write("{\n" + json.dumps({"prompt": "Tell.", "completion": text(1, 900)}) + "\n")
    with (folder / "chat.jsonl").open("a") as file:
        file.write(json.dumps(LONG_CHAT) + "\n")
    form = {"kind": "texts", "columns": ["text"]}
    document["data"]["sources"].append({"kind": "identity", "name": "who", "facts": FACTS, "num_examples": 40})
    document["data"] |= {
        "on_bad_row": "skip",
        "on_long_conversation": "split",
        "decontaminate": {"against": [{"name": "bench", "uri": f"{folder}/benchmark.jsonl", "form": form}]},
        "mixture": {"code": 2, "general": {"share": 1, "max_epochs": 2}, "identity": 0.2},
    }
    return document


@pytest.fixture(scope="module")
def whole(everything: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes of `everything`."""
    root = tmp_path_factory.mktemp("whole")
    run(everything, root)
    return root


def run(document: dict[str, Any], root: Path) -> PreparedData:
    return prepare(JobSpec.model_validate(document), str(root), lambda *_: None)


def rows_of(prepared: PreparedData, name: str) -> list[PackedRow]:
    rows = PackedRows(f"{prepared.url}/{name}")
    return [rows[index] for index in range(len(rows))]


def documents(rows: list[PackedRow]) -> list[tuple[str, bytes, bytes]]:
    found = []
    for row in rows:
        borders = np.cumsum(row.document_lengths)[:-1]
        pieces = zip(np.split(row.tokens, borders), np.split(row.trained, borders), strict=True)
        for category, (tokens, trained) in zip(row.document_categories, pieces, strict=True):
            found.append((category, tokens.tobytes(), trained.tobytes()))
    return found


def test_a_source_that_is_held_out_is_measured_whole_and_its_copies_are_not_trained_on(
    document: dict[str, Any], tmp_path: Path
) -> None:
    chats = (tmp_path / "chat.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(chats[:7]))
    few = {"name": "few", "category": "measured", "form": "messages", "hold_out": True}
    document["data"]["sources"].append(few | {"uri": f"file://{tmp_path}/few.jsonl"})
    document["data"] |= {"dedup": None, "held_out_fraction": 0.0}
    manifest = run(document, tmp_path / "prepared").manifest
    held_out = {line["category"]: line["examples"] for line in manifest["held_out"]}
    assert held_out == {"measured": 7, "general": 7}, "the copies in the other source, too"
    assert "measured" not in {line["category"] for line in manifest["mixture"] if line["examples"]}


def test_every_row_is_accounted_for_and_the_manifest_tells_what_lies_there(
    document: dict[str, Any], tmp_path: Path
) -> None:
    tasks: dict[str, tuple[int, int | None]] = {}
    prepared = prepare(
        JobSpec.model_validate(document),
        str(tmp_path / "prepared"),
        lambda task, done, total, _: tasks.update({task: (done, total)}),
    )
    manifest = prepared.manifest
    assert not prepared.reused
    assert manifest == json.loads((Path(prepared.url) / "manifest.json").read_text())
    counts = ("files", "rows_read", "rows_rejected", "exact_duplicates", "near_duplicates", "rows_kept")
    assert [[source[name] for name in counts] for source in manifest["sources"]] == [
        [2, 90, 0, 20, 10, 60],
        [1, 60, 0, 0, 0, 60],
    ]
    train, held_out = rows_of(prepared, "train"), rows_of(prepared, "held_out")
    packing = manifest["packing"]
    stages = manifest["accounting"]
    assert [line["stage"] for line in stages] == ["read", "cap", "deduplicate", "tokenise", "fit", "hold out", "mix"]
    assert stages[0]["rows_in"] == 150
    assert stages[-1]["rows_out"] == packing["documents"]
    for before, after in itertools.pairwise(stages):
        assert before["rows_out"] == after["rows_in"] == before["rows_in"] - sum(before["gone"].values())
    assert packing["rows"] == len(train)
    assert packing["tokens"] == sum(len(row.tokens) for row in train)
    assert packing["trained_tokens"] == sum(int(row.trained.sum()) for row in train)
    assert packing["fill"] == pytest.approx(packing["tokens"] / (512 * len(train)))
    assert packing["documents"] + sum(line["examples"] for line in manifest["held_out"]) == 120
    assert [line["category"] for line in manifest["held_out"]] == ["code", "general"]
    assert sum(line["tokens"] for line in manifest["held_out"]) == sum(len(row.tokens) for row in held_out)
    assert sum(line["fraction"] for line in manifest["mixture"]) == pytest.approx(1)
    certificate = manifest["certificate"]
    assert [certificate[name] for name in ("rows", "fill")] == [packing["rows"], packing["fill"]]
    assert [line["name"] for line in certificate["sources"]] == ["snippets", "chat"]
    for name, rows in (("train", train), ("held_out", held_out)):
        assert sum(shard["rows"] for shard in manifest["shards"][name]) == len(rows)
        for shard in manifest["shards"][name]:
            assert hashlib.sha256((Path(prepared.url) / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        assert len(certificate["samples"][name]) == min(8, len(rows))
    assert not {tokens for _, tokens, _ in documents(train)} & {tokens for _, tokens, _ in documents(held_out)}
    assert manifest["dedup_examples"][0]["kind"] == "near"
    assert manifest["dedup_examples"][0]["similarity"] > 0.9
    assert all(done == total for done, total in tasks.values() if total is not None)


def test_packed_rows_hold_whole_conversations_and_never_train_a_first_token(
    document: dict[str, Any], shared: Path
) -> None:
    prepared = run(document, shared)
    start, end = 0, 1
    for row in rows_of(prepared, "train") + rows_of(prepared, "held_out"):
        assert len(row.tokens) == len(row.trained) == row.document_lengths.sum() <= 512
        starts = np.cumsum(row.document_lengths) - row.document_lengths
        assert (row.tokens[starts] == start).all()
        assert not row.trained[starts].any()
        ends = (row.tokens == end) & row.trained
        assert ends.sum() == len(row.document_lengths), "one answer each, trained to its end"


def test_a_second_call_reuses_and_other_settings_reuse_the_corpus(document: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "prepared"
    first, second = run(document, root), run(document, root)
    assert (first.reused, second.reused) == (False, True)
    assert (second.url, second.manifest) == (first.url, first.manifest)
    document["data"]["mixture"] = {"code": 3, "general": 1}
    other = run(document, root)
    assert other.url != first.url
    assert other.tokenizer_url == first.tokenizer_url
    assert len(list(root.glob("corpus-*"))) == 1
    assert other.manifest["mixture"][0]["fraction"] == pytest.approx(0.75, abs=0.03)
    assert other.manifest["mixture"][0]["asked_fraction"] == 0.75
    assert other.manifest["packing"]["left_out_by_mixture"] > 0
    document["seed"] = 5
    document["data"]["seed"] = 0
    assert run(document, root).url == other.url, "the data has a seed of its own"
    document["data"]["mixture"] = {"code": 0, "general": 1}
    without = run(document, root).manifest
    assert [(line["category"], line["examples"] > 0) for line in without["mixture"]] == [
        ("code", False),
        ("general", True),
    ]
    document["data"] |= {"mixture": None, "leave_out": ["snippets"]}
    left = run(document, root).manifest
    assert [(line["category"], line["examples"]) for line in left["mixture"]] == [
        ("general", without["mixture"][1]["examples"])
    ]
    assert left["held_out"] == without["held_out"] == first.manifest["held_out"], "whatever is trained on"
    document["data"]["dedup"] = None
    assert run(document, root).manifest["sources"][0]["rows_kept"] == 90
    assert len(list(root.glob("corpus-*"))) == 2


def test_a_mixture_by_examples_repeats_what_is_scarce_and_tells_what_came_out(
    document: dict[str, Any], shared: Path
) -> None:
    first = run(document, shared)
    document["data"] |= {"mixture_by": "examples", "mixture": {"code": {"share": 3, "max_epochs": 2}, "general": 1}}
    document["data"]["sources"][1]["weight"] = 2
    prepared = run(document, shared)
    assert prepared.tokenizer_url == first.tokenizer_url, "weights and epochs are no part of the corpus"
    code, general = prepared.manifest["mixture"]
    available = {line["category"]: line["examples"] for line in first.manifest["mixture"]}
    assert [line["available"] for line in (code, general)] == [available["code"], available["general"]]
    assert code["examples"] == 2 * available["code"]
    assert general["examples"] == code["examples"] // 3
    assert code["fraction"] == pytest.approx(0.75, abs=0.01)
    assert [line["stopped_by"] for line in (code, general)] == ["supply", "share"]
    snippets, chat = prepared.manifest["mixture_sources"]
    assert (snippets["distinct"], snippets["examples"]) == (available["code"], code["examples"])
    assert (chat["weight"], chat["distinct"], chat["tokens"]) == (2, general["examples"], general["tokens"])
    packing = prepared.manifest["packing"]
    assert (packing["repeated"], packing["left_out_by_mixture"]) == (
        available["code"],
        available["general"] - general["examples"],
    )
    assert packing["documents"] == code["examples"] + general["examples"]
    assert Counter(Counter(documents(rows_of(prepared, "train"))).values()) == {
        2: available["code"],
        1: general["examples"],
    }
    document["data"]["sources"][0]["epochs"] = 1
    assert run(document, shared).manifest["packing"]["repeated"] == 0


def test_bytes_do_not_depend_on_place_and_a_torn_directory_is_made_again(
    document: dict[str, Any], tmp_path: Path
) -> None:
    first = run(document, tmp_path / "one")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("*.jsonl"):
        shutil.copy(path, moved)
    for source in document["data"]["sources"]:
        source["uri"] = source["uri"].replace(str(tmp_path), str(moved))
    second = run(document, tmp_path / "two[1]-*")
    assert second.manifest["hash"] == first.manifest["hash"]
    assert len(rows_of(second, "train")) == second.manifest["packing"]["rows"] > 0
    expected = digests(tmp_path / "one")
    assert len(expected) == 31, (
        "9 parts, 6 of lines, 4 of the tokenizer, 2 of duplicates, index, 2 shards twice, unfit, lineages, manifests"
    )
    assert digests(tmp_path / "two[1]-*") == expected
    for directory in (tmp_path / "two[1]-*").iterdir():
        (directory / "manifest.json").unlink()
    (tmp_path / "two[1]-*" / Path(second.url).name / "train" / "shard-00000.parquet").write_bytes(b"torn")
    third = run(document, tmp_path / "two[1]-*")
    assert not third.reused
    assert third.manifest == second.manifest
    assert digests(tmp_path / "two[1]-*") == expected


def test_the_lineage_spells_out_what_the_bytes_follow_from(
    document: dict[str, Any], tmp_path: Path, shared: Path
) -> None:
    first = run(document, shared)
    lineage = json.loads((Path(first.url) / "lineage.json").read_text())
    assert not any(str(place) in json.dumps(lineage) for place in (tmp_path, shared))
    corpus = lineage["corpus"]
    for name, part in (("packed", lineage), ("corpus", corpus)):
        content = json.dumps(part["decided_by"], sort_keys=True).encode()
        assert part["hash"] == hashlib.sha256(content).hexdigest()[:16]
        assert (shared / f"{name}-{part['hash']}" / "lineage.json").exists()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.jsonl")}
    assert [line[-1] for line in corpus["decided_by"]["files"]] == [
        files[name] for name in ("code-0.jsonl", "code-1.jsonl", "chat.jsonl")
    ]
    template = hashlib.sha256((Path(first.tokenizer_url) / "chat_template.jinja").read_bytes()).hexdigest()
    assert corpus["tokenizer"]["chat_template.jinja"] == template
    assert corpus["packages"]["tokenizers"] == version("tokenizers")
    document["seed"] = 5
    other = json.loads((Path(run(document, shared).url) / "lineage.json").read_text())
    assert other["corpus"] == corpus
    assert (other["decided_by"]["seed"], lineage["decided_by"]["seed"]) == (5, JobSpec.model_fields["seed"].default)


KILLED_AT = {
    "identity": 0,
    "hash sources": 0,
    "hash benchmarks again": 0,
    "read and sign": None,  # some files are read by then
    "ray_jobs.data.corpus_builder.DuplicateSearch.write_receipt": 15,
    "ray_jobs.data.corpus_builder.keep_duplicates": 16,
    "deduplicate": 17,
    "ray_jobs.data.corpus_builder.keep_tokenizer": 17,
    "tokenizer": 17,
    "tokenise": 25,
    "ray_jobs.data.corpus.write_lineage": 26,
    "ray_jobs.data.corpus.write_manifest": 26,
    "fit": 26,
    "order train": 27,
    "pack train": 28,
    "order held-out": 29,
    "pack held-out": 30,
    "ray_jobs.data.prepare.write_unfit": 30,
    "ray_jobs.data.prepare.write_lineage": 31,
    "ray_jobs.data.prepare.write_manifest": 31,
    "ray_jobs.data.prepare.remove_ordered": 31,
}
"""The ends of all tasks, and what the driver writes between them; how many files of data are whole by then. At the end:
4 parts of keys, conversations, signatures, tokenised and lengths each, 1 of rejected rows, 2 of contaminated ones, 2 on
duplicates, the index, a batch and a shard of each side, and the list of what does not fit."""


def prepare_until(stage: str, spec: JobSpec, root: Path) -> None:
    """Begin a run that is killed at a stage."""

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def progress(task: str, done: int, total: int | None, _: str) -> None:
        if task == stage and total in {done, None}:
            kill()

    with pytest.MonkeyPatch.context() as patch:
        if "." in stage:
            patch.setattr(stage, kill)
        prepare(spec, str(root), progress)


def test_a_run_killed_at_every_stage_is_gone_on_with_and_gives_the_same_bytes(
    everything: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run goes on with what the one before has left, and is killed one stage later."""
    spec, root = JobSpec.model_validate(everything), tmp_path / "killed"

    def count(place: Any, name: str) -> None:
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args: (calls.update([name]), original(*args))[1])

    calls: Counter[str] = Counter()
    count(DuplicateSearch, "run")
    count(corpus_builder, "make_tokenizer")
    before: dict[Path, int] = {}
    for stage, num_files in KILLED_AT.items():
        with pytest.raises(KeyboardInterrupt):
            prepare_until(stage, spec, root)
        left = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in {".parquet", ".arrow"}}
        assert num_files in {len(left), None}, stage
        again = {path.name for path in before if left[path] != before[path]}
        assert again <= {"duplicates.parquet", "index.parquet", "unfit.parquet"}, stage
        before = left
    assert prepare(spec, str(root), lambda *_: None).reused
    assert digests(root) == digests(whole)
    assert calls == {"run": 3, "make_tokenizer": 2}, "again where it was killed before its result was kept, else never"


def test_two_jobs_that_prepare_the_same_at_once_do_not_disturb_each_other(
    document: dict[str, Any], tmp_path: Path
) -> None:
    run(document, tmp_path / "alone")
    spec, root = JobSpec.model_validate(document), str(tmp_path / "shared")
    job = ray.remote(num_cpus=0)(prepare)
    first, second = ray.get([job.remote(spec, root, lambda *_: None) for _ in range(2)])
    assert (first.reused, second.reused) == (False, False)
    assert (first.url, first.manifest) == (second.url, second.manifest)
    assert digests(tmp_path / "shared") == digests(tmp_path / "alone")


def test_a_job_that_is_overtaken_takes_what_the_other_has_made(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(writer: RowSetWriter, *_: Any) -> Written:
        monkeypatch.undo()
        others.append(run(document, tmp_path / "prepared"))
        raise FileNotFoundError("the other has removed it")

    others: list[PreparedData] = []
    monkeypatch.setattr(RowSetWriter, "write", overtaken)
    prepared = run(document, tmp_path / "prepared")
    assert not prepared.reused
    assert prepared == others[0]
    names = sorted(path.name for path in Path(prepared.url).iterdir())
    assert names == ["held_out", "lineage.json", "manifest.json", "train", "unfit.parquet"]
    document["seed"] = 1
    monkeypatch.setattr(RowSetWriter, "write", lambda *_: Path(f"{tmp_path}/none").read_text())
    with pytest.raises(FileNotFoundError, match="none"):
        run(document, tmp_path / "prepared")


def test_a_changed_source_is_another_corpus(document: dict[str, Any], tmp_path: Path, shared: Path) -> None:
    first = run(document, shared)
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "assistant", "content": "New."}]}) + "\n")
    second = run(document, shared)
    assert not second.reused
    assert second.tokenizer_url != first.tokenizer_url
    assert second.manifest["sources"][1]["rows_kept"] == 61


def test_a_file_that_changes_while_it_is_read_fails_and_is_not_kept(document: dict[str, Any], tmp_path: Path) -> None:
    def change(name: str, after: str) -> Callable[..., None]:
        def progress(task: str, done: int, total: int | None, _: str) -> None:
            if task == after and done == total:
                (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")

        return progress

    spec, root = JobSpec.model_validate(document), tmp_path / "prepared"
    with pytest.raises(ConflictError, match=r"chat\.jsonl changed while it was read") as caught:
        prepare(spec, str(root), change("chat.jsonl", after="hash sources"))
    assert caught.value.field == "data.sources.1.uri"
    assert list(root.rglob("manifest.json")) == []
    shutil.copytree(run(document, root).tokenizer_url, tmp_path / "tokenizer")
    document["model"]["tokenizer"] = {"kind": "pretrained", "path": str(tmp_path / "tokenizer")}
    with pytest.raises(ConflictError, match="the tokenizer changed") as caught:
        prepare(JobSpec.model_validate(document), str(root), change("tokenizer/tokenizer.json", after="deduplicate"))
    assert caught.value.field == "model.tokenizer"


def test_text_of_one_row_group_at_a_time_is_read_for_the_tokenizer(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    groups: list[weakref.ref[pa.Table]] = []
    alive: list[int] = []

    def counted(url: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        parts.append(url)
        for table in read_row_groups(url, columns):
            groups.append(weakref.ref(table))
            alive.append(sum(group() is not None for group in groups))
            yield table

    monkeypatch.setattr("ray_jobs.data.corpus_builder.read_row_groups", counted)
    document["data"]["dedup"] = None
    run(document, tmp_path / "prepared")
    assert len(set(parts)) == len(parts) == 3, "each part is read once"
    assert max(alive) <= 2, "the one that is read and the one before it"


def test_a_row_that_a_task_loses_stops_the_run(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(batch: pa.Table, **kwargs: Any) -> Iterator[pa.Table]:
        for table in tokenise_file(batch, **kwargs):
            yield table.slice(1)

    monkeypatch.setattr(
        "ray_jobs.data.corpus_builder._TOKENISE", _FileTask("tokenise", losing, INDEX_SCHEMA, "lengths")
    )
    with pytest.raises(AssertionError, match="stage 'tokenise' lost rows of source 'snippets'"):
        run(document, tmp_path / "prepared")
    assert list((tmp_path / "prepared").rglob("manifest.json")) == []


def test_the_driver_reads_what_it_shows_and_trains_a_tokenizer_on(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_texts = CorpusBuilder._read_texts

    def counted(builder: CorpusBuilder, keys: pa.Table, indices: Sequence[int]) -> Iterator[tuple[int, str]]:
        read.append(len(indices))
        return read_texts(builder, keys, indices)

    monkeypatch.setattr(CorpusBuilder, "_read_texts", counted)
    run(document, tmp_path / "prepared")
    assert read == [10, 120], "five pairs to show, and all that is kept"


def receipt_of(prepared: PreparedData) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = read_parquet(prepared.manifest["dedup"]["receipt_url"]).to_pylist()
    return lines


def test_each_dropped_row_has_a_receipt_that_names_its_twin(document: dict[str, Any], shared: Path) -> None:
    prepared = run(document, shared)
    receipt = receipt_of(prepared)
    copies = [line for line in receipt if line["kind"] == "exact"]
    assert [(line["file"], line["row"], line["kept_file"], line["kept_row"]) for line in copies] == [
        ("code-1.jsonl", row, "code-0.jsonl", row) for row in range(1, 21)
    ]
    assert {line["similarity"] for line in copies} == {1.0}
    near = [line for line in receipt if line["kind"] == "near"]
    # the one with a word more stays
    assert [(line["file"], line["row"], line["kept_file"], line["kept_row"]) for line in near] == [
        ("code-0.jsonl", row, "code-1.jsonl", row) for row in range(21, 31)
    ]
    # 90 words have 86 shingles of five, and one word more has one more
    assert {line["similarity"] for line in near} == {86 / 87}
    dedup = prepared.manifest["dedup"]
    assert dedup["clusters"] == 30
    assert dedup["between_sources"] == [
        {"dropped_source": "snippets", "kept_source": "snippets", "exact_duplicates": 20, "near_duplicates": 10}
    ]
    assert [line["estimated_dropped"] for line in dedup["thresholds"]] == [30] * 5
    assert dedup["banding"]["precision"] == 1
    assert 0.999 < dedup["banding"]["estimated_recall"] <= 1
    assert dedup["banding"]["sample"] == {"conversations": 130, "near_pairs": 10, "found": 10}


def test_a_corpus_is_the_same_in_however_many_parts_its_bands_are_shuffled(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(document, tmp_path / "whole")
    assert whole.manifest["sources"][0]["near_duplicates"] == 10
    monkeypatch.setattr(band_shuffle, "KEYS_PER_TASK", 40)  # 82 slices, 100 parts
    parts = run(document, tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    for manifest in (whole.manifest, parts.manifest):
        del manifest["dedup"]["receipt_url"]
    assert parts.manifest["dedup"] == whole.manifest["dedup"]


@pytest.mark.parametrize("verify", ["exact", "estimate"])
def test_the_first_source_stays_if_asked_however_pairs_are_compared(
    verify: str, document: dict[str, Any], shared: Path
) -> None:
    document["data"]["dedup"] = {"keep": "first_source", "verify": verify}
    near = [line for line in receipt_of(run(document, shared)) if line["kind"] == "near"]
    assert [(line["file"], line["kept_file"]) for line in near] == [("code-1.jsonl", "code-0.jsonl")] * 10
    # of 125 minima about as many agree as the sets do: within four standard deviations
    assert all(abs(line["similarity"] - 86 / 87) < 4 * (86 / 87 / 87 / 125) ** 0.5 for line in near)
    assert (len({line["similarity"] for line in near}) == 1) == (verify == "exact")


def test_of_one_prompt_one_answer_stays_if_prompts_are_compared(
    document: dict[str, Any], tmp_path: Path, shared: Path
) -> None:
    write_jsonl(
        tmp_path / "chat.jsonl",
        [{"messages": [{"role": "user", "content": text(4321)}, {"role": "assistant", "content": text(n, 9)}]}
         for n in range(9000, 9005)],
    )  # fmt: skip
    apart = run(document, shared).manifest["sources"][1]
    document["data"]["dedup"] = {"compare": "prompt"}
    together = run(document, shared).manifest["sources"][1]
    assert (apart["rows_kept"], together["rows_kept"]) == (5, 1)
    assert together["near_duplicates"] == 4


BAD_ROWS = ["{", {"prompt": "a"}, {"prompt": "a", "completion": None}, [1], {"prompt": "a", "completion": "\ud800"}]


def test_a_bad_row_fails_with_its_place_and_the_count(document: dict[str, Any], tmp_path: Path) -> None:
    with (tmp_path / "code-1.jsonl").open("a") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in BAD_ROWS)
    with pytest.raises(BadRowError, match=r"code-1\.jsonl row 31: not JSON: .* \(and 4 more\)") as caught:
        run(document, tmp_path / "prepared")
    assert caught.value.field == "data.sources.0.uri"
    assert list((tmp_path / "prepared").rglob("manifest.json")) == []


def test_skipped_rows_are_counted_and_listed(document: dict[str, Any], tmp_path: Path, shared: Path) -> None:
    clean = run(document, shared)
    with (tmp_path / "code-1.jsonl").open("a") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in BAD_ROWS)
    (tmp_path / "code-2.jsonl.gz").write_bytes(b"not gzip")
    document["data"]["sources"][0]["uri"] += "*"
    document["data"]["on_bad_row"] = "skip"
    prepared = run(document, shared)
    source = prepared.manifest["sources"][0]
    assert [source[name] for name in ("files", "rows_read", "rows_rejected", "rows_kept")] == [3, 96, 6, 60]
    listed = pq.read_table(prepared.manifest["rejected_rows_url"]).to_pylist()
    assert listed == prepared.manifest["rejected_rows"]
    assert [(row["source"], row["file"].rpartition("/")[2], row["row"]) for row in listed] == [
        *[("snippets", "code-1.jsonl", number) for number in range(31, 36)],
        ("snippets", "code-2.jsonl.gz", 1),
    ]
    assert all(row["reason"] for row in listed)
    counted = {(line["source"], line["reason"]): line["rows"] for line in prepared.manifest["rejected_reasons"]}
    assert counted == Counter((row["source"], row["reason"]) for row in listed)
    assert [row["excerpt"] for row in listed[:4]] == [row if row == "{" else json.dumps(row) for row in BAD_ROWS[:4]]
    assert listed[4]["excerpt"] == r'{"prompt": "a", "completion": "\ud800"}'
    assert prepared.manifest["packing"]["tokens"] == clean.manifest["packing"]["tokens"], "bad rows change nothing else"


MALFORMED = {
    "empty.jsonl": b"",
    "empty.json": b"",
    "utf-16.jsonl": '{"prompt": "a", "completion": "b"}\n'.encode("utf-16"),
    "latin-1.jsonl": '{"prompt": "a", "completion": "é"}\n'.encode("latin-1"),
    "latin-1.csv": "prompt,completion\na,é\n".encode("latin-1"),
    "huge-line.jsonl": b'{"prompt": "a", "completion": "' + b"x" * 33 * 2**20,
    "latin-1.json": '[{"prompt": "a", "completion": "é"}]'.encode("latin-1"),
    "huge-row.json": b'[{"prompt": "a", "completion": "' + b"x" * 33 * 2**20,
    "huge-turn.json": json.dumps([{"prompt": "a", "completion": "x" * 10_000_000}]).encode(),
    "nulls.json": b'[null, {"prompt": null, "completion": [null, {"a": null}]}]',
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "bomb.json.gz": gzip.compress(b"[" + b" " * 80 * 2**20, 1),
    "lines.json": b'{"prompt": "a", "completion": "b"}\n',
    "huge-turn.jsonl": json.dumps({"prompt": "a", "completion": "x" * 10_000_000}).encode(),
    "nulls.jsonl": b'null\n{"prompt": null, "completion": [null, {"a": null}]}\n',
    "deep.jsonl": b"[" * 100_000 + b"]" * 100_000,
    "bomb.jsonl.gz": gzip.compress(b"x" * 80 * 2**20, 1),
    "torn.jsonl.gz": gzip.compress(b'{"prompt": "a", "completion": "b"}\n')[:-8],
    "torn.parquet": b"PAR1 and so on",
}


def test_every_kind_of_malformed_input_ends_as_a_listed_row(
    document: dict[str, Any], tmp_path: Path, shared: Path
) -> None:
    clean = run(document, shared)
    (tmp_path / "bad").mkdir()
    for name, content in MALFORMED.items():
        (tmp_path / "bad" / name).write_bytes(content)
    bad = {"name": "bad", "category": "code", "form": "prompt_completion", "uri": f"file://{tmp_path}/bad/*"}
    document["data"] |= {"on_bad_row": "skip", "sources": [*document["data"]["sources"], bad]}
    prepared = run(document, shared)
    reasons: dict[str, list[str]] = {name: [] for name in MALFORMED}
    for row in pq.read_table(prepared.manifest["rejected_rows_url"]).to_pylist():
        reasons[row["file"].rpartition("/")[2]].append(row["reason"])
    assert reasons.pop("empty.jsonl") == [], "no line, no row"
    assert [name for name, found in reasons.items() if len(found) != 1] == [
        "nulls.json",
        "nulls.jsonl",
        "bomb.jsonl.gz",
    ]
    expected = {
        "empty.json": "not a JSON list",
        "latin-1.json": "not UTF-8",
        "huge-row.json": "in 33,554,432 characters and more",
        "huge-turn.json": "10,000,001 characters",
        "nulls.json": "'prompt' is not text but NoneType",
        "deep.json": "RecursionError",
        "bomb.json.gz": "ExpansionError",
        "lines.json": "say format: jsonl",
        "utf-16.jsonl": "UTF-16",
        "latin-1.jsonl": "UnicodeDecodeError",
        "latin-1.csv": "not UTF-8",
        "huge-line.jsonl": "a line of 33,554,432 bytes and more",
        "huge-turn.jsonl": "10,000,001 characters",
        "nulls.jsonl": "'prompt' is not text but NoneType",
        "deep.jsonl": "RecursionError",
        "bomb.jsonl.gz": "ExpansionError",
        "torn.jsonl.gz": "EOFError",
        "torn.parquet": "ArrowInvalid",
    }
    assert {name: reason for name, reason in expected.items() if reason not in reasons[name][-1]} == {}
    source = prepared.manifest["sources"][2]
    assert (source["rows_read"], source["rows_rejected"]) == (22, 21), "the torn file's first row is good"
    assert prepared.manifest["packing"]["documents"] - clean.manifest["packing"]["documents"] in (0, 1)


def answer(text: str, *replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "text": text, "lang": "en", "replies": list(replies), **fields}


def test_trees_give_several_conversations_and_every_one_is_accounted_for(
    document: dict[str, Any], tmp_path: Path
) -> None:
    """40 trees of three threads, a copy of the third, one in German, one without an answer, one with a broken one."""
    trees = [
        answer(text(n), *(answer(text(1000 * reply + n, 60), rank=reply) for reply in (1, 2, 3)), role="prompter")
        for n in range(7000, 7040)
    ]
    german = {**trees[0], "lang": "de"}
    broken = answer(text(1), answer(text(2), answer(text(3))), answer(text(4, 60)), role="prompter")
    rows = [*trees, trees[2], german, {**trees[0], "replies": []}, broken]
    write_jsonl(tmp_path / "trees.jsonl", [{"prompt": tree} for tree in rows])
    write_jsonl(tmp_path / "benchmark.jsonl", [{"text": trees[1]["replies"][1]["text"]}])
    form = {"kind": "tree", "threads": "all", "languages": ["en"]}
    source = {"name": "trees", "category": "general", "form": form, "uri": f"{tmp_path}/trees.jsonl"}
    benchmark = {"name": "b", "uri": f"{tmp_path}/benchmark.jsonl", "form": {"kind": "texts", "columns": ["text"]}}
    document["data"] |= {"on_bad_row": "skip", "sources": [source], "held_out_fraction": 0.4}
    document["data"]["decontaminate"] = {"against": [benchmark]}
    prepared = run(document, tmp_path / "prepared")
    [counts] = prepared.manifest["sources"]
    assert {name: counts[name] for name in counts if name not in ("name", "category", "files")} == {
        "rows_read": 44,
        "further_threads": 41 * 2 + 1,
        "rows_rejected": 2,
        "rows_filtered": 1,
        "rows_contaminated": 1,
        "rows_over_cap": 0,
        "exact_duplicates": 3,
        "near_duplicates": 0,
        "rows_kept": 40 * 3,
    }
    read = prepared.manifest["accounting"][0]
    assert (read["rows_in"], read["made"], read["rows_out"]) == (44, 83, 123)
    assert read["gone"] == {"rows_rejected": 2, "rows_filtered": 1, "rows_contaminated": 1}
    assert [(row["row"], row["thread"]) for row in prepared.manifest["rejected_rows"]] == [(43, 1), (44, 1)]
    [contaminated] = prepared.manifest["decontamination"]["rows"]
    assert (contaminated["row"], contaminated["thread"]) == (2, 2)
    receipt = pq.read_table(prepared.manifest["dedup"]["receipt_url"]).to_pylist()
    places = ("row", "thread", "kept_row", "kept_thread")
    assert [tuple(line[name] for name in places) for line in receipt] == [(41, n, 3, n) for n in (1, 2, 3)]
    first_turns = []
    for name in ("train", "held_out"):
        found = [np.frombuffer(tokens, np.int32).tolist() for _, tokens, _ in documents(rows_of(prepared, name))]
        first_turns.append({tuple(tokens[: tokens.index(1)]) for tokens in found})
    train, held_out = first_turns
    assert len(train | held_out) == 41
    assert not train & held_out, "no tree is on both sides"
    assert min(len(train), len(held_out)) > 5


def test_what_overlaps_with_a_benchmark_is_removed_before_its_duplicates_are(
    document: dict[str, Any], tmp_path: Path
) -> None:
    """Rows 20 to 29 have near copies; those of row 20 and its copy share 13 words with the benchmark, row 21's 12."""
    rows = [json.loads(line) for line in (tmp_path / "code-0.jsonl").read_text().splitlines()]
    for name, row, size in (("first", 20, 13), ("second", 20, 40), ("none", 21, 12)):
        words = rows[row]["completion"].split()
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": " ".join(["other", *words[5 : 5 + size], "words"])}])
    form = {"kind": "texts", "columns": ["text"]}
    document["data"]["decontaminate"] = {
        "against": [
            {"name": name, "uri": f"{tmp_path}/{name}.jsonl", "form": form} for name in ("first", "second", "none")
        ]
    }
    prepared = run(document, tmp_path / "prepared")
    source = prepared.manifest["sources"][0]
    counts = ("rows_contaminated", "exact_duplicates", "near_duplicates", "rows_kept")
    assert [source[name] for name in counts] == [2, 20, 9, 59]
    told = prepared.manifest["decontamination"]
    assert told["benchmarks"] == [{"name": name, "rows": 2 * (name != "none")} for name in ("first", "second", "none")]
    listed = pq.read_table(told["rows_url"]).to_pylist()
    assert told["rows"] == listed
    assert [(row["file"][-12:], row["row"], row["benchmark"]) for row in listed] == [
        (file, row, name) for file, row in (("code-0.jsonl", 21), ("code-1.jsonl", 21)) for name in ("first", "second")
    ]
    assert listed[0]["words"] == " ".join(rows[20]["completion"].split()[5:18])
    assert (listed[0]["benchmark_file"], listed[0]["benchmark_row"]) == (f"file://{tmp_path}/first.jsonl", 1)
    (tmp_path / "second.jsonl").write_text('{"text": "quite another"}\n')
    again = run(document, tmp_path / "prepared")
    assert not again.reused
    assert again.manifest["decontamination"]["benchmarks"][1]["rows"] == 0
    (tmp_path / "second.jsonl").write_text("{}\n")
    with pytest.raises(BadRowError, match=r"second\.jsonl row 1") as caught:
        run(document, tmp_path / "prepared")
    assert caught.value.field == "data.decontaminate.against.1.uri"


def test_a_cap_and_a_system_prompt_are_the_sources_own(document: dict[str, Any], shared: Path) -> None:
    code, chat = document["data"]["sources"]
    document["data"]["sequence_length"] = 2048
    code["max_rows"] = 25
    chat["form"] = {"kind": "turns", "turns": "messages"}
    without = run(document, shared)
    chat["system_prompt"] = "A prompt of words that every conversation of this source has. " * 9
    prepared = run(document, shared)
    code_counts, chat_counts = prepared.manifest["sources"]
    assert (code_counts["rows_read"], code_counts["rows_over_cap"]) == (90, 65)
    assert code_counts["exact_duplicates"] + code_counts["near_duplicates"] + code_counts["rows_kept"] == 25
    assert chat_counts["rows_kept"] == 60, "the shared prompt makes no near-duplicates"
    first, second = (run_.manifest["mixture"] for run_ in (without, prepared))
    assert second[0]["tokens"] == first[0]["tokens"]
    assert second[1]["tokens"] > first[1]["tokens"] + 9 * 9 * second[1]["examples"]
    assert second[1]["trained_tokens"] == first[1]["trained_tokens"]


def test_an_identity_source_is_written_and_loses_no_row_to_its_likeness(document: dict[str, Any], shared: Path) -> None:
    document["data"]["sources"] += [
        {"kind": "identity", "name": "who", "facts": FACTS, "num_examples": 400, "system_prompt": "You are Husky."},
        {"kind": "identity", "name": "again", "facts": FACTS, "num_examples": 400},
    ]
    first = run(document, shared)
    counts = ("rows_read", "rows_rejected", "exact_duplicates", "near_duplicates", "rows_kept")
    who, again = ([source[name] for name in counts] for source in first.manifest["sources"][2:])
    assert who == [400, 0, 0, 0, 400]
    assert again == [400, 0, 400, 0, 0], "copies go, and the first source's rows stay"
    spared = [line["similarity"] for line in receipt_of(first) if line["source"] in {"who", "again"}]
    assert spared == [1.0] * 400
    assert [line["category"] for line in first.manifest["mixture"]] == ["code", "general", "identity"]
    assert run(document, shared).reused
    document["data"]["sources"][2]["duplicates"] = "near"
    near = run(document, shared).manifest["sources"][2:]
    assert [source["near_duplicates"] for source in near] == [0, 0], "what a spared source holds stays, wherever it is"
    assert [source["rows_kept"] for source in near] == [400, 0]
    document["data"]["sources"][3]["duplicates"] = "near"
    assert run(document, shared).manifest["sources"][2]["near_duplicates"] > 10, "what they would have lost"
    document["data"]["sources"][2]["num_examples"] = 100_000
    with pytest.raises(InvalidSpecError, match="the templates give") as caught:
        run(document, shared)
    assert caught.value.field == "data.sources.2.num_examples"


def test_long_conversations_are_cut_or_dropped_and_counted(
    document: dict[str, Any], tmp_path: Path, shared: Path
) -> None:
    write_jsonl(tmp_path / "code-1.jsonl", [{"prompt": "Tell.", "completion": text(1, 900)}])
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(json.dumps(LONG_CHAT) + "\n")
    document["data"]["held_out_fraction"] = 0.0
    counts = ("whole", "truncated", "split", "too_long")
    seen = {}
    for how in ("truncate", "drop", "split"):
        document["data"]["on_long_conversation"] = how
        prepared = seen[how] = run(document, shared)
        snippets, chat = prepared.manifest["fit"]
        assert [snippets[count] for count in counts] == [60, 0, 0, 1]
        assert [chat[count] for count in counts] == [60, how == "truncate", how == "split", how == "drop"]
        [fit] = [stage for stage in prepared.manifest["accounting"] if stage["stage"] == "fit"]
        assert (fit["rows_in"], fit["gone"]["too_long"]) == (122, 1 + (how == "drop"))
        assert prepared.manifest["packing"]["documents"] == 120 + chat["truncated"] + chat["pieces"]
        assert prepared.manifest["held_out"] == []
        assert rows_of(prepared, "held_out") == []
        assert prepared.tokenizer_url == seen["truncate"].tokenizer_url, "one corpus serves them all"
    assert seen["split"].manifest["fit"][1]["pieces"] > 1


def test_nothing_left_is_an_error_with_a_field(document: dict[str, Any], tmp_path: Path) -> None:
    document["data"]["mixture"] = {"code": {"share": 1, "cap": 1}, "general": {"share": 1, "cap": 1}}
    with pytest.raises(EmptyDataError, match="the caps let no conversation in") as caught:
        run(document, tmp_path / "prepared")
    assert caught.value.field == "data.mixture"
    document["data"]["mixture"] = {"code": 1, "general": 1}
    document["data"]["on_long_conversation"] = "drop"
    document["data"]["sequence_length"] = 64
    with pytest.raises(EmptyDataError, match="no conversation of 'code' is left") as caught:
        run(document, tmp_path / "prepared")
    assert caught.value.field == "data.mixture.code"
    for path in tmp_path.glob("*.jsonl"):
        path.write_text("")
    with pytest.raises(EmptyDataError) as caught:
        run(document, tmp_path / "prepared")
    assert caught.value.field == "data.sources"


def test_faults_of_the_spec_arrive_as_they_are(document: dict[str, Any], tmp_path: Path) -> None:
    document["data"]["sources"][1]["uri"] = f"file://{tmp_path}/none.jsonl"
    with pytest.raises(SourceNotFoundError) as caught:
        run(document, tmp_path / "prepared")
    assert caught.value.field == "data.sources.1.uri"
    document["data"]["sources"][1]["uri"] = f"file://{tmp_path}/chat.jsonl"
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    document["model"]["tokenizer"] = {"kind": "pretrained", "path": str(tokenizer)}
    with pytest.raises(InvalidSpecError, match=r"no <\|im_start\|>") as refused:
        run(document, tmp_path / "prepared")
    assert refused.value.field == "model.tokenizer"
