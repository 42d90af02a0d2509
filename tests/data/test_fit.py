"""From tokenised parts to packed documents: each is a rendered sub-conversation, and every row is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ray_jobs.data.corpus import Corpus
from ray_jobs.data.corpus_builder import FILE_NAMES, INDEX_FILE
from ray_jobs.data.packed_rows import PackedRows
from ray_jobs.data.parquet_files import parquet_writer, part_url, read_parquet
from ray_jobs.data.prepare import _Packer
from ray_jobs.data.tasks import CONVERSATION_SCHEMA, tokenise_file
from ray_jobs.data.tokenise import ChatTokenizer
from service.rows.chatml import END, START
from service.rows.formats import Conversation, Turn
from service.spec.job import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

ROW_LENGTH = 64
WORDS = [f"w{number}" for number in range(200)]


def words(seed: int, size: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size))


def chat(seed: int, *sizes: int, system: int = 0) -> Conversation:
    led = [Turn("system", words(seed, system))] if system else []
    return (*led, *(Turn(("user", "assistant")[n % 2], words(seed + n, size)) for n, size in enumerate(sizes)))


SHORT = [chat(seed, 3, 5) for seed in range(0, 500, 10)]
LONG = {
    "three exchanges": chat(1000, 10, 10, 10, 10, 10, 10),
    "behind a system turn": chat(1100, 4, 8, 4, 8, 4, 8, 4, 8, system=10),
    "one exchange": chat(1200, 3, 90),
    "too long in the middle": chat(1300, 3, 5, 3, 90, 3, 6),
}
SILENT = (Turn("user", "w1 w2"), Turn("assistant", "none of these words is known"))
CONVERSATIONS = [*SHORT, *LONG.values(), SILENT]


def words_tokenizer(directory: Path) -> None:
    """One token a word; a word that it does not know leaves no trace, as in a BPE without bytes or unknown piece."""
    vocabulary = {word: number for number, word in enumerate(["\n", "system", "user", "assistant", *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.add_special_tokens([START, END])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two sources, one part each; every conversation is in both, in every other row."""
    url = str(tmp_path_factory.mktemp("corpus"))
    words_tokenizer(Path(url, "tokenizer"))
    lines = [
        {
            "row": row,
            "thread": 1,
            "roles": [turn.role for turn in conversation],
            "contents": [turn.content for turn in conversation],
        }
        for row, conversation in zip(range(1, 2 * len(CONVERSATIONS), 2), CONVERSATIONS, strict=True)
    ]
    data = spec("truncate").data
    tables = []
    for file in (0, 1):
        with parquet_writer(part_url(f"{url}/conversations", file), CONVERSATION_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(lines, CONVERSATION_SCHEMA))
        kept = list(range(len(lines)))
        hashes = [bytes([number]) * 16 for number in kept]
        item = {"file": file, "source": file, "kept": kept, "content_hashes": hashes, "group_hashes": hashes}
        tables += tokenise_file(pa.Table.from_pylist([item]), data, url)
    index = pa.concat_tables(tables).replace_schema_metadata({FILE_NAMES: json.dumps(["code.jsonl", "general.jsonl"])})
    with parquet_writer(f"{url}/{INDEX_FILE}", index.schema) as writer:
        writer.write_table(index)
    accounting = [{"stage": "tokenise", "rows_out": 2 * len(lines)}]
    return Corpus(url, {"hash": "x", "accounting": accounting}, reused=False)


def spec(how: str, held_out: float = 0.0) -> JobSpec:
    sources = [
        {"name": name, "category": name, "form": "messages", "uri": f"/{name}.jsonl"} for name in ("code", "general")
    ]
    data = {"sources": sources, "sequence_length": ROW_LENGTH, "on_long_conversation": how}
    model = {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "pretrained", "path": "/t"}}
    return JobSpec.model_validate({"name": "fit", "model": model, "data": data | {"held_out_fraction": held_out}})


def packed(corpus: Corpus, how: str, directory: Path, held_out: float = 0.0) -> dict[str, Any]:
    return _Packer(spec(how, held_out), corpus, str(directory), lambda *_: None).pack()


def documents(directory: Path) -> Counter[tuple[bytes, bytes]]:
    found: Counter[tuple[bytes, bytes]] = Counter()
    rows = PackedRows(str(directory))
    for row in (rows[index] for index in range(len(rows))):
        borders = np.cumsum(row.document_lengths)[:-1]
        pieces = zip(np.split(row.tokens, borders), np.split(row.trained, borders), strict=True)
        found.update((tokens.tobytes(), trained.tobytes()) for tokens, trained in pieces)
    return found


def parts(name: str, *turns: tuple[int, int]) -> list[Conversation]:
    """Slices of a long conversation, behind its system turn."""
    conversation = LONG[name]
    head = conversation[:1] if conversation[0].role == "system" else ()
    return [(*head, *conversation[len(head) + first : len(head) + stop]) for first, stop in turns]


MADE = {
    "drop": [],
    "truncate": [
        *parts("three exchanges", (0, 4)),
        *parts("behind a system turn", (0, 4)),
        *parts("too long in the middle", (0, 2)),
    ],
    "split": [
        *parts("three exchanges", (0, 4), (4, 6)),
        *parts("behind a system turn", (0, 4), (4, 8)),
        *parts("too long in the middle", (0, 2), (4, 6)),
    ],
}
COUNTS = {
    "drop": {"truncated": 0, "split": 0, "too_long": 4, "pieces": 0, "exchanges_too_long": 0},
    "truncate": {"truncated": 3, "split": 0, "too_long": 1, "pieces": 0, "exchanges_too_long": 1},
    "split": {"truncated": 0, "split": 3, "too_long": 1, "pieces": 6, "exchanges_too_long": 2},
}


@pytest.mark.parametrize("how", MADE)
def test_packed_documents_are_rendered_conversations_and_every_row_is_counted(
    corpus: Corpus, tmp_path: Path, how: str
) -> None:
    manifest = packed(corpus, how, tmp_path)
    expected = ChatTokenizer(Path(corpus.url, "tokenizer")).render([*SHORT, *MADE[how]])
    assert documents(tmp_path / "train") == Counter({(r.tokens.tobytes(), r.trained.tobytes()): 2 for r in expected})
    for line in manifest["fit"]:
        assert line == {"name": line["name"], "whole": len(SHORT), "no_trained_token": 1, **COUNTS[how]}
    fit, hold_out, mix = manifest["accounting"][1:]
    gone = {"too_long": 2 * COUNTS[how]["too_long"], "no_trained_token": 2}
    assert fit == {
        "stage": "fit",
        "rows_in": 2 * len(CONVERSATIONS),
        "made": 0,
        "rows_out": 2 * len(CONVERSATIONS) - sum(gone.values()),
        "gone": gone,
    }
    assert fit["rows_out"] == hold_out["rows_in"] == mix["rows_out"], "in rows, not in pieces"
    for line in manifest["mixture_sources"]:
        assert line["examples"] == len(expected)
        assert line["trained_tokens"] == sum(int(r.trained.sum()) for r in expected)
        assert line["trained_fraction"] == line["trained_tokens"] / sum(len(r.tokens) for r in expected)


@pytest.mark.parametrize("how", MADE)
def test_what_is_too_long_or_trains_nothing_is_listed_with_its_place_and_reason(
    corpus: Corpus, tmp_path: Path, how: str
) -> None:
    """By its row in the raw file, of which every other one was removed before."""
    manifest = packed(corpus, how, tmp_path)
    listed = read_parquet(manifest["unfit_rows_url"]).to_pylist()
    assert listed == manifest["unfit_rows"]
    long = [LONG["one exchange"]] if how != "drop" else list(LONG.values())
    rendered = ChatTokenizer(Path(corpus.url, "tokenizer")).render([*long, SILENT])
    assert listed == [
        {"source": name, "file": f"{name}.jsonl", "row": row, "thread": 1, "reason": reason, "tokens": len(line.tokens)}
        for name in ("code", "general")
        for line, row, reason in zip(
            rendered,
            [*(2 * CONVERSATIONS.index(conversation) + 1 for conversation in long), 2 * len(CONVERSATIONS) - 1],
            [*("too_long" for _ in long), "no_trained_token"],
            strict=True,
        )
    ]


def test_all_pieces_of_a_conversation_are_held_out_together(corpus: Corpus, tmp_path: Path) -> None:
    """At whatever conversation the border between the two sides falls."""
    sides = set()
    for fraction in np.linspace(0.01, 0.49, 25):
        packer = _Packer(spec("split", float(fraction)), corpus, str(tmp_path), lambda *_: None)
        training, held_out = (set(packer._conversation[documents].tolist()) for documents in packer._hold_out())
        assert training
        assert not training & held_out
        split = np.flatnonzero(np.bincount(packer._conversation) > 1).tolist()
        sides |= {(number in training, number in held_out) for number in split}
    assert sides == {(True, False), (False, True)}


def test_split_conversations_are_counted_as_rows_to_the_end(corpus: Corpus, tmp_path: Path) -> None:
    _, hold_out, mix = packed(corpus, "split", tmp_path, held_out=0.4)["accounting"][1:]
    assert hold_out["rows_out"] == mix["rows_in"] == hold_out["rows_in"] - hold_out["gone"]["held_out"]
