from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.multiple_choice import MultipleChoice
from ray_jobs.evaluate.workers import WorkFailedError
from service.errors import BadRowError
from service.spec.evaluate import MultipleChoiceTask
from tests.evaluate.conftest import WriteRows
from tests.evaluate.test_language_model import slow_likelihood
from tests.moe.test_parity import RELATIVE_TOLERANCE

FIELD = "evaluate.tasks.0"
ROWS = [
    {"input": "Is 3 plus 1 4?", "targets": {"choices": ["It is 4.", "No"], "labels": [1, 0]}},
    {"input": "What?", "targets": {"choices": ["What is what", "plus 3", "1"], "labels": [0, 0, 1]}},
    {"input": "Hi", "targets": {"choices": ["Hi!", "Is it?"], "labels": [0, 1]}},
]
QUESTIONS = [(row["input"], row["targets"]["choices"], row["targets"]["labels"].index(1)) for row in ROWS]  # type: ignore[index]


def task(uri: str, **fields: Any) -> MultipleChoice:
    document = {"kind": "multiple_choice", "uri": uri} | fields
    return MultipleChoice(MultipleChoiceTask.model_validate(document), FIELD)


@torch.no_grad()
def test_the_likeliest_choice_is_that_of_computing_each_token_alone(
    write_lines: WriteRows, language_model: LanguageModel
) -> None:
    result = task(write_lines("hhh.jsonl", ROWS)).run(language_model, seed=0)
    hits, hits_per_character = [], []
    for sample, (question, choices, target) in zip(result.samples, QUESTIONS, strict=True):
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        expected = []
        for choice, found in zip(choices, sample["log_likelihoods"], strict=True):
            tokens = language_model.encode(choice)
            total, _, largest = slow_likelihood(language_model, language_model.encode(text), tokens)
            assert abs(found - total) < 2 * len(tokens) * largest * RELATIVE_TOLERANCE
            expected.append(total)
        means = [total / len(choice) for total, choice in zip(expected, choices, strict=True)]
        assert sample["log_likelihoods_per_character"] == pytest.approx(means, rel=1e-4)
        hits.append(expected.index(max(expected)) == target)
        hits_per_character.append(means.index(max(means)) == target)
        assert sample["verdict"] == ("correct" if hits_per_character[-1] else "wrong")
    assert result.metrics["accuracy"].score == pytest.approx(sum(hits) / 3)
    assert result.metrics["accuracy_per_character"].score == pytest.approx(sum(hits_per_character) / 3)
    assert any(sample["answer"] != sample["answer_per_character"] for sample in result.samples), "else one would do"


def columns(question: str, choices: str, answer: str) -> dict[str, str]:
    return {"question": question, "choices": choices, "answer": answer}


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("big_bench", {"input": "Q", "target_scores": {"a": 0, "b": 1}}),
        (columns("question", "choices", "answer"), {"question": "Q", "choices": ["a", "b"], "answer": 1}),
        (columns("question", "choices", "answer"), {"question": "Q", "choices": ["a", "b"], "answer": "b"}),
        (columns("{x}", "options", "best"), {"x": "Q", "options": {"A": "a", "B": "b"}, "best": "B"}),
        (
            columns("question", "choices", "answerKey"),
            {"question": "Q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        ),
    ],
)
def test_rows_come_in_the_forms_that_are_published(
    form: Any, row: dict[str, Any], write_lines: WriteRows, language_model: LanguageModel
) -> None:
    [sample] = task(write_lines("rows.jsonl", [row]), form=form).run(language_model, seed=0).samples
    assert (sample["choices"], sample["target"]) == (("a", "b"), 1)
    assert sample["prompt"] == [{"role": "user", "content": "Q"}]


def test_big_benchs_own_file_is_read(tmp_path: Path, language_model: LanguageModel) -> None:
    document = {"name": "x", "examples": [{"input": "Q", "target_scores": {"a": 1, "b": 0}}] * 2}
    (tmp_path / "task.json").write_text(json.dumps(document))
    samples = task(f"file://{tmp_path}/task.json", form="big_bench").run(language_model, seed=0).samples
    assert [sample["target"] for sample in samples] == [0, 0]
    (tmp_path / "task.json").write_text("{broken")
    with pytest.raises(BadRowError, match="not a JSON list"):
        task(f"file://{tmp_path}/task.json", form="big_bench")


def test_solved_examples_are_answered_with_the_right_choice(
    write_lines: WriteRows, language_model: LanguageModel
) -> None:
    few_shot = {"uri": write_lines("train.jsonl", ROWS[:2]), "num_examples": 2}
    [sample] = task(write_lines("hhh.jsonl", ROWS[2:]), few_shot=few_shot).run(language_model, seed=0).samples
    assert [message["content"] for message in sample["prompt"]] == ["Is 3 plus 1 4?", "It is 4.", "What?", "1", "Hi"]


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("hhh", {"input": "Q"}, "no field 'targets.choices'"),
        ("hhh", {"input": "Q", "targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "2 right choices instead of 1"),
        ("hhh", {"input": "Q", "targets": {"choices": ["a", ""], "labels": [1, 0]}}, "a choice is empty"),
        ("hhh", {"input": "Q", "targets": {"choices": ["a"], "labels": [1]}}, "at least 2 items"),
        ("hhh", {"input": 3, "targets": {"choices": ["a", "b"], "labels": [1, 0]}}, "the question is no text but int"),
        ("hhh", ["Q"], "not an object but list"),
        ("big_bench", {"input": "Q"}, "no object 'target_scores'"),
        (columns("q", "c", "a"), {"q": "Q", "c": ["a", "b"], "a": 2}, "answer 2 of 2 choices"),
        (columns("q", "c", "a"), {"q": "Q", "c": ["a", "b"], "a": "c"}, "the answer 'c' is none of the choices"),
        (columns("q", "c", "a"), {"q": "Q", "c": "ab", "a": "a"}, "the answer 'a' is none of the choices"),
    ],
)
def test_a_row_of_another_kind_is_named(form: Any, row: Any, reason: str, write_lines: WriteRows) -> None:
    with pytest.raises(BadRowError, match=reason) as caught:
        task(write_lines("rows.jsonl", [row]), form=form)
    assert caught.value.field == f"{FIELD}.uri"


def test_a_choice_that_fits_no_model_fails_the_task(write_lines: WriteRows, language_model: LanguageModel) -> None:
    object.__setattr__(language_model.model.config, "max_positions", 3)
    with pytest.raises(WorkFailedError, match="the model takes 3"):
        task(write_lines("hhh.jsonl", ROWS)).run(language_model, seed=0)
