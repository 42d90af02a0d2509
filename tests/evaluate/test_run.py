"""The files that an evaluation leaves, and what a task that fails does not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.run import evaluate_tasks, read_summaries, read_tasks
from ray_jobs.run_directory import RunDirectory
from service.errors import SourceNotFoundError
from service.spec.evaluate import EvaluateSpec
from tests.evaluate.conftest import WriteRows
from tests.evaluate.test_gsm8k import ROWS


@pytest.fixture
def spec(write_lines: WriteRows) -> EvaluateSpec:
    uri = write_lines("test.jsonl", ROWS)
    questions = write_lines("q.jsonl", [{"question_id": "é", "category": "math", "turns": ["?"]}])
    judge = {"base_url": "http://127.0.0.1:1", "model": "m", "max_retries": 0}
    tasks = [
        {"kind": "mt_bench", "uri": questions, "judge": judge, "max_new_tokens": 1},
        {"kind": "gsm8k", "name": "sums", "uri": uri, "max_new_tokens": 1},
    ]
    return EvaluateSpec.model_validate({"tasks": tasks})


def evaluate(spec: EvaluateSpec, model: LanguageModel, run: RunDirectory, step: int = 7) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    evaluate_tasks(spec, model, run, when="after", step=step, seed=0, tell=lambda **summary: told.append(summary))
    return told


def test_a_task_that_fails_leaves_its_answers_and_the_others_alone(
    spec: EvaluateSpec, language_model: LanguageModel, tmp_path: Path
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    told = evaluate(spec, language_model, run)
    assert [(line["task"], line["kind"], line["status"]) for line in told] == [
        ("mt_bench", "mt_bench", "failed"),
        ("sums", "gsm8k", "succeeded"),
    ]
    assert "http://127.0.0.1:1 was asked 1 times" in told[0]["reason"]
    assert told[1]["metrics"]["exact_match"]["n"] == 4
    assert (told[1]["when"], told[1]["step"], told[1]["samples"]) == ("after", 7, 4)
    folder = tmp_path / "run" / "evaluation" / "after"
    lines = [json.loads(line) for line in (folder / "sums.jsonl").read_text().splitlines()]
    assert [line["target"] for line in lines] == ["18", "1250", "-3", "7"]
    [unjudged] = [json.loads(line) for line in (folder / "mt_bench.jsonl").read_text().splitlines()]
    assert (unjudged["id"], unjudged["verdict"]) == ("é", "not_judged")
    assert read_summaries(run, spec, ["before", "after"]) == told


def test_what_an_earlier_start_has_done_is_not_done_again(
    spec: EvaluateSpec, language_model: LanguageModel, tmp_path: Path
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    evaluate(spec, language_model, run)
    assert evaluate(spec, language_model, run) == []
    (tmp_path / "run/evaluation/after/sums.json").unlink()
    assert [line["task"] for line in evaluate(spec, language_model, run)] == ["sums"]
    assert len(evaluate(spec, language_model, run, step=8)) == 2, "of other weights it says nothing"


def test_questions_that_vanish_fail_their_task_only(
    spec: EvaluateSpec, language_model: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").unlink()
    told = evaluate(spec, language_model, RunDirectory(str(tmp_path / "run")))
    assert told[1]["status"] == "failed"
    assert told[1]["reason"].startswith("evaluate.tasks.1.uri: no such file")
    with pytest.raises(SourceNotFoundError):  # before training it is an error of the job
        read_tasks(spec)
