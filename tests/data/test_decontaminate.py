"""N-gram overlap with benchmarks, against a comparison of all pairs, and the reading of benchmarks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_jobs.data.benchmarks import benchmark_texts, find_benchmark_files
from ray_jobs.data.decontaminate import BenchmarkText, NgramIndex, Overlap, words_of
from service.errors import BadRowError, SourceNotFoundError
from service.rows.formats import Conversation, Turn
from service.spec.data import DecontaminateSpec

WORDS = [f"w{number}" for number in range(10)]


def text(benchmark: str, row: int, content: str, is_prompt: bool = True) -> BenchmarkText:
    return BenchmarkText(benchmark, f"{benchmark}.jsonl", row, content, is_prompt)


def asked(*contents: str) -> Conversation:
    return tuple(Turn(("user", "assistant")[number % 2], content) for number, content in enumerate(contents))


def index(*texts: BenchmarkText, ngram_words: int = 5) -> NgramIndex:
    return NgramIndex(texts, ngram_words)


def ngrams(content: str, size: int) -> set[tuple[str, ...]]:
    words = words_of(content)
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def passages(rng: random.Random, count: int, size: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, size))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("collide", [False, True])
def test_the_same_are_found_as_by_comparing_all_pairs(
    seed: int, collide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every hash is the same: equal hashes alone never make a hit."""
    rng, size = random.Random(seed), 4
    benchmark = [text(rng.choice("ab"), row, content) for row, content in enumerate(passages(rng, 40, 12))]
    conversations = [asked(*passages(rng, 2, 30)) for _ in range(200)]
    ngram_index = index(*benchmark, ngram_words=size)
    if collide:
        monkeypatch.setattr(ngram_index, "_multipliers", np.zeros(size, dtype=np.uint64))
        monkeypatch.setattr(ngram_index, "_hashes", np.zeros_like(ngram_index._hashes))
    found = [{overlap.benchmark for overlap in overlaps} for overlaps in ngram_index.find(conversations)]
    places = [(place.benchmark, ngrams(place.text, size), words_of(place.text)) for place in benchmark]
    expected = [
        {
            name
            for turn in conversation
            for turn_ngrams, turn_words in [(ngrams(turn.content, size), words_of(turn.content))]
            for name, place_ngrams, place_words in places
            if place_ngrams & turn_ngrams or (turn.role == "user" and place_words == turn_words)
        }
        for conversation in conversations
    ]
    assert found == expected
    assert 20 < sum(map(bool, found)) < 180


def test_an_overlap_tells_the_benchmarks_row_and_the_words_both_hold() -> None:
    found = index(text("a", 1, "One two three."), text("a", 7, "zero ONE two, three four five six")).find(
        [asked("Say: one\n# two three\n# four!", "five six"), asked("x", "…one-two (three) `four` FIVE six!")]
    )
    assert found == [[], [Overlap("a", "a.jsonl", 7, "one two three four five")]]


def test_turns_and_conversations_are_not_read_across_their_borders() -> None:
    found = index(text("a", 1, "one two three four five")).find(
        [
            asked("one two three", "four five"),
            asked("one two"),
            asked("three four five"),
            asked("one two three four five"),
        ]
    )
    assert [bool(overlaps) for overlaps in found] == [False, False, False, True]


def test_each_benchmark_counts_and_one_text_of_it_is_told() -> None:
    content = "one two three four five six"
    found = index(text("a", 1, content), text("b", 1, content), text("a", 2, content)).find([asked("no", content)])
    assert [(overlap.benchmark, overlap.row) for overlap in found[0]] == [("a", 1), ("b", 1)]


def test_an_ngram_of_many_rows_is_looked_up_once() -> None:
    template = "this line stands in every row of it"
    ngram_index = index(*(text("a", row, f"{template} {row}") for row in range(1, 500)))
    assert ngram_index.num_ngrams == 4 + 499
    assert ngram_index.find([asked(f"{template}")])[0][0].row == 1


def test_a_short_text_matches_a_users_turn_that_is_it_and_nothing_else() -> None:
    short = index(text("a", 1, "Who are you?"), text("a", 2, "yes", is_prompt=False), text("a", 3, " … "))
    assert (short.num_ngrams, short.num_short_texts) == (0, 1)
    conversations = [
        asked("who ARE you", "x"),
        asked("Who are you today?", "x"),
        asked("x", "Who are you?"),
        asked("yes", ""),
    ]
    assert [bool(overlaps) for overlaps in short.find(conversations)] == [True, False, False, False]


def test_nothing_to_look_for_or_to_look_at_finds_nothing() -> None:
    assert index().find([asked("one two three four five six")]) == [[]]
    assert index(text("a", 1, "one two three four five")).find([]) == []


def benchmarks(tmp_path: Path, form: Any, *rows: Any) -> DecontaminateSpec:
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DecontaminateSpec.model_validate(
        {"against": [{"name": "bench", "uri": f"{tmp_path}/bench.jsonl", "form": form}]}
    )


def texts_of(spec: DecontaminateSpec) -> list[tuple[int, str, bool]]:
    return [(text.row, text.text, text.is_prompt) for text in benchmark_texts(spec, find_benchmark_files(spec))]


def test_a_benchmark_may_hold_texts_lists_of_them_or_conversations(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": "A.", "turns": ["One?", "Two?"]}
    spec = benchmarks(tmp_path, {"kind": "texts", "columns": ["turns", "answer"]}, row)
    assert texts_of(spec) == [(1, "One?", True), (1, "Two?", True), (1, "A.", True)]
    spec = benchmarks(tmp_path, {"kind": "columns", "prompt": "question", "completion": "answer"}, row)
    assert texts_of(spec) == [(1, "Q?", True), (1, "A.", False)]
    messages = {"messages": [{"role": "user", "content": "Q?"}]}
    assert texts_of(benchmarks(tmp_path, "messages", messages)) == [(1, "Q?", True)], "no answer is needed"


@pytest.mark.parametrize("row", [{"question": None}, {}, {"question": ["a", 1]}, ["a"], None])
def test_a_benchmarks_bad_row_is_an_error_with_its_place(tmp_path: Path, row: Any) -> None:
    spec = benchmarks(tmp_path, {"kind": "texts", "columns": ["question"]}, {"question": "Q?"}, row)
    with pytest.raises(BadRowError, match=r"bench\.jsonl row 2: 'question' is neither text nor") as caught:
        texts_of(spec)
    assert caught.value.field == "data.decontaminate.against.0.uri"


def test_a_missing_benchmark_names_its_field(tmp_path: Path) -> None:
    spec = benchmarks(tmp_path, "messages")
    (tmp_path / "bench.jsonl").unlink()
    with pytest.raises(SourceNotFoundError) as caught:
        find_benchmark_files(spec)
    assert caught.value.field == "data.decontaminate.against.0.uri"
    assert find_benchmark_files(None) == []
