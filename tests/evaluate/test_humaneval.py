from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs.evaluate.humaneval import HumanEval, HumanEvalRow, completion_of, program
from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.workers import WorkFailedError
from service.spec.evaluate import HumanEvalTask
from tests.evaluate.conftest import NEEDS_BUBBLEWRAP, WriteRows

DOUBLE = {
    "task_id": "Own/0",
    "prompt": "from math import floor\n\n\ndef half(x):\n    return x // 2\n\n\n"
    'def double(x: int) -> int:\n    """Twice x."""\n',
    "entry_point": "double",
    "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
}
FIRST = {
    "task_id": "Own/1",
    "prompt": 'def first(items: list) -> object:\n    """The first of the items, None of nothing."""\n',
    "entry_point": "first",
    "test": "def check(candidate):\n    assert candidate([3, 1]) == 3\n    assert candidate([]) is None\n",
}
ROW = HumanEvalRow.model_validate(DOUBLE)

RIGHT = [
    "    return 2 * x\n",
    "return 2 * x",
    "y = x\nreturn x + y",
    "    return 2 * x\n\nprint(double(3))\n",
    "    return 2 * x\n\n# and so on\nclass",
    "    return 2 * x\n```\nThat doubles it.",
    "def double(x):\n    return half(x * 4)",
    "Here:\n```python\ndef double(x: int) -> int:\n    return floor(2 * x)\n```\nIt doubles.",
    "```\ndef double(x):\n    return 2 * x",
    "```python\n    return 2 * x\n```",
    "```py\nreturn 2 * x\n```",
    "```python\nprint('an example')\n```\nor rather\n```python\ndef double(x):\n    return x * 2\n```",
    "```python\n    def double(x):\n        return x * 2\n```",
    "```python\nimport math\n\ndef twice(x):\n    return math.prod([2, x])\n\ndef double(x):\n    return twice(x)\n```",
]
WRONG = [
    "",
    "```python\n```",
    "    return x",
    "def double(x):\n    return 3 * x",
    "It is 2 * x.",
    "def doubled(x):\n    return 2 * x",
]


def passes(answer: str) -> bool:
    """Run without a sandbox, for these answers are our own."""
    try:
        exec(program(ROW, completion_of(answer, ROW)), {})
    except (AssertionError, SyntaxError, NameError):
        return False
    return True


@pytest.mark.parametrize("answer", RIGHT)
def test_code_is_found_however_a_model_gives_it(answer: str) -> None:
    assert passes(answer)


@pytest.mark.parametrize("answer", WRONG)
def test_what_is_not_right_does_not_pass(answer: str) -> None:
    assert not passes(answer)


def task(uri: str, **fields: Any) -> HumanEval:
    document = {"kind": "humaneval", "uri": uri} | fields
    return HumanEval(HumanEvalTask.model_validate(document), "evaluate.tasks.0")


@NEEDS_BUBBLEWRAP
def test_answers_are_run_against_their_tests(write_lines: WriteRows, scripted: Callable[..., LanguageModel]) -> None:
    said = {"double": "```python\ndef double(x):\n    return 2 * x\n```", "first": "    return items[0]\n"}
    model = scripted(lambda messages: next(said[key] for key in said if f"def {key}(" in messages[-1]["content"]))
    result = task(write_lines("own.jsonl", [DOUBLE, FIRST])).run(model, seed=0)
    assert [(sample["id"], sample["verdict"], sample["detail"]) for sample in result.samples] == [
        ("Own/0", "passed", ""),
        ("Own/1", "failed", "IndexError: list index out of range"),
    ]
    assert result.samples[1]["answer"] == said["first"]
    assert result.samples[1]["target"] == FIRST["test"]
    assert (result.metrics["pass@1"].score, result.metrics["pass@1"].n) == (0.5, 2)


@NEEDS_BUBBLEWRAP
def test_of_several_answers_pass_at_k_is_estimated(
    write_lines: WriteRows, scripted: Callable[..., LanguageModel]
) -> None:
    answers = iter(["return 2 * x", "return x", "return 3 * x", *["return items[0] if items else None"] * 3])
    model = scripted(lambda _: next(answers))
    fields = {"num_samples": 3, "temperature": 0.8, "pass_at": [1, 2]}
    result = task(write_lines("own.jsonl", [DOUBLE, FIRST]), **fields).run(model, seed=0)
    assert [sample["sample"] for sample in result.samples] == [0, 1, 2] * 2
    assert result.metrics["pass@1"].score == pytest.approx((1 / 3 + 1) / 2)
    assert result.metrics["pass@2"].score == pytest.approx((2 / 3 + 1) / 2)
    assert result.metrics["pass@2"].n == 2


@NEEDS_BUBBLEWRAP
def test_an_answer_that_leaves_early_has_not_passed(
    write_lines: WriteRows, scripted: Callable[..., LanguageModel]
) -> None:
    model = scripted(lambda _: "```python\ndef double(x):\n    import os\n    os._exit(0)\n```")
    result = task(write_lines("own.jsonl", [DOUBLE])).run(model, seed=0)
    assert result.metrics["pass@1"].score == 0


def test_nothing_is_generated_where_nothing_can_be_run(
    write_lines: WriteRows, scripted: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asked: list[object] = []
    with pytest.raises(WorkFailedError, match="no bubblewrap"):
        task(write_lines("own.jsonl", [DOUBLE])).run(scripted(lambda messages: str(asked.append(messages))), seed=0)
    assert not asked
