from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.evaluate.gsm8k import Gsm8k, final_number
from ray_jobs.evaluate.language_model import LanguageModel
from service.errors import BadRowError, EmptyDataError, SourceNotFoundError
from service.spec.evaluate import Gsm8kTask
from tests.evaluate.conftest import WriteRows

FIELD = "evaluate.tasks.0"
ROWS = [
    {"question": "Ada has 2 nets of 9 fish. How many fish?", "answer": "2 * 9 = <<2*9=18>>18\n#### 18"},
    {"question": "How much is a boat?", "answer": "A lot.\n#### 1,250"},
    {"question": "How deep?", "answer": "Below the sea.\n#### -3"},
    {"question": "How many?", "answer": "#### 7"},
]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("So it is 4.\n#### 18", "18"),
        ("#### 18.00", "18"),
        ("#### $1,250.", "1250"),
        ("####-3", "-3"),
        ("#### -$3", "-3"),
        ("#### 5\nQuestion: and now?\n#### 6", "5"),
        ("#### .5", "0.5"),
        ("It is 18.", None),
        ("#### eighteen", None),
        ("#### 1.2.3", None),
        ("#### ,.", None),
        ("", None),
    ],
)
def test_the_answer_is_the_number_behind_the_first_mark(answer: str, number: str | None) -> None:
    assert final_number(answer) == (None if number is None else Decimal(number))


def task(uri: str, **fields: Any) -> Gsm8k:
    return Gsm8k(Gsm8kTask.model_validate({"kind": "gsm8k", "uri": uri} | fields), FIELD)


def test_each_answer_is_compared_with_the_rows_own(
    write_lines: WriteRows, scripted: Callable[..., LanguageModel]
) -> None:
    said = {"Ada": "18 fish.\n#### 18.0", "How much": "#### 1249", "How deep": "Minus three.", "How many": "#### 7"}
    model = scripted(lambda messages: next(said[key] for key in said if messages[-1]["content"].startswith(key)))
    result = task(write_lines("test.jsonl", ROWS)).run(model, seed=0)
    assert [sample["verdict"] for sample in result.samples] == ["correct", "wrong", "no_answer", "correct"]
    assert [sample["target"] for sample in result.samples] == ["18", "1250", "-3", "7"]
    assert result.samples[1]["answer"] == "#### 1249"
    assert result.samples[1]["extracted"] == "1249"
    metric = result.metrics["exact_match"]
    assert (metric.score, metric.n, metric.standard_error) == (0.5, 4, pytest.approx((1 / 12) ** 0.5))


def test_solved_examples_stand_before_the_question(
    write_lines: WriteRows, scripted: Callable[..., LanguageModel]
) -> None:
    train = write_lines("train.jsonl", ROWS[1:])
    few_shot = {"uri": train, "num_examples": 2}
    tasks = task(write_lines("test.jsonl", ROWS), few_shot=few_shot, limit=1, instruction="Think.")
    [sample] = tasks.run(scripted(lambda _: "#### 18"), seed=0).samples
    assert [message["content"] for message in sample["prompt"]] == [
        "How much is a boat?\n\nThink.",
        "A lot.\n#### 1,250",
        "How deep?\n\nThink.",
        "Below the sea.\n#### -3",
        "Ada has 2 nets of 9 fish. How many fish?\n\nThink.",
    ]
    assert [message["role"] for message in sample["prompt"]] == ["user", "assistant"] * 2 + ["user"]


def test_the_model_is_really_asked(write_lines: WriteRows, language_model: LanguageModel) -> None:
    result = task(write_lines("test.jsonl", ROWS), max_new_tokens=3, instruction="").run(language_model, seed=0)
    expected = language_model.answer([[{"role": "user", "content": row["question"]}] for row in ROWS], 3)
    assert [sample["answer"] for sample in result.samples] == [answer.text for answer in expected]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "?"}, "row 2: answer: Field required"),
        ({"question": "?", "answer": "18"}, "row 2: answer: Value error, no number behind ####"),
        ({"question": 3, "answer": "#### 1"}, "row 2: question: Input should be a valid string"),
        (["?"], "row 2: Input should be a valid dictionary"),
    ],
)
def test_a_row_of_another_kind_is_named(row: Any, reason: str, write_lines: WriteRows) -> None:
    with pytest.raises(BadRowError, match=reason) as caught:
        task(write_lines("test.jsonl", [ROWS[0], row]))
    assert caught.value.field == f"{FIELD}.uri"


def test_files_that_are_missing_or_empty_are_named(write_lines: WriteRows, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError) as caught:
        task(f"file://{tmp_path}/none.jsonl")
    assert caught.value.field == f"{FIELD}.uri"
    with pytest.raises(SourceNotFoundError) as caught:
        task(write_lines("test.jsonl", ROWS), few_shot={"uri": f"file://{tmp_path}/none.jsonl"})
    assert caught.value.field == f"{FIELD}.few_shot.uri"
    with pytest.raises(EmptyDataError, match="no rows"):
        task(write_lines("empty.jsonl", []))
