"""lm-evaluation-harness on a task of our own, without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moe.generate import generate
from ray_jobs.evaluate.harness import LmEval
from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.workers import WorkFailedError
from service.errors import InvalidSpecError
from service.spec.evaluate import LmEvalTask

TASKS = {
    "own_choice": """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: "{{a}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_text": """
task: own_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: bits_per_byte}]
""",
    "own_answer": """
task: own_answer
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "4"
generation_kwargs: {until: ["1"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
ROWS = [{"q": "What is 3 plus 1?", "c": ["4", "31"], "a": 0}, {"q": "plus", "c": [" is", "What?"], "a": 1}]


def test_without_the_harness_the_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InvalidSpecError, match=r"install sleddog\[lm-eval\]") as caught:
        LmEval(LmEvalTask(kind="lm_eval", tasks=("ifeval",)), "evaluate.tasks.0")
    assert caught.value.field == "evaluate.tasks.0"


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'sleddog[lm-eval]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    return str(tmp_path / "tasks")


def run(model: LanguageModel, include_path: str, *tasks: str, **fields: Any) -> Any:
    document = {"kind": "lm_eval", "tasks": tasks, "include_path": include_path} | fields
    return LmEval(LmEvalTask.model_validate(document), "evaluate.tasks.0").run(model, seed=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_the_harness_asks_our_model(own_tasks: str, language_model: LanguageModel) -> None:
    result = run(language_model, own_tasks, "own_choice", "own_answer")
    prompts = [language_model.prompt([{"role": "user", "content": row["q"]}]) for row in ROWS]
    hits = []
    for prompt, row in zip(prompts, ROWS, strict=True):
        likelihoods = language_model.likelihoods([(prompt, language_model.encode(choice)) for choice in row["c"]])
        sums = [likelihood.log_probability for likelihood in likelihoods]
        hits.append(sums.index(max(sums)) == row["a"])
    assert result.metrics["own_choice/acc"].score == sum(hits) / 2
    assert result.metrics["own_choice/acc"].n == 2
    answers = [sample for sample in result.samples if sample["id"].startswith("own_answer/")]
    for sample, prompt in zip(answers, prompts, strict=True):
        [tokens] = generate(language_model.model, [prompt], 4, [language_model.tokenizer.eos_token_id])
        text = language_model.tokenizer.decode(tokens, skip_special_tokens=True)
        assert sample["answer"] == [text.partition("1")[0]]
        assert sample["target"] == "4"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_running_text_is_measured_in_windows(own_tasks: str, language_model: LanguageModel) -> None:
    object.__setattr__(language_model.model.config, "max_positions", 5)
    result = run(language_model, own_tasks, "own_text", apply_chat_template=False)
    first = language_model.tokenizer.eos_token_id
    total = 0.0
    for row in ROWS:
        tokens = language_model.encode(str(row["q"]))
        assert len(tokens) > 4 or row is ROWS[1]
        for start in range(0, len(tokens), 4):
            window, context = tokens[start : start + 4], [first, *tokens][: start + 1]
            total += language_model.likelihoods([(context, window)])[0].log_probability
    num_bytes = sum(len(str(row["q"]).encode()) for row in ROWS)
    assert result.metrics["own_text/bits_per_byte"].score == pytest.approx(-total / num_bytes / 0.6931471805599453)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_an_unknown_task_is_a_failure_in_words(own_tasks: str, language_model: LanguageModel) -> None:
    with pytest.raises(WorkFailedError, match="no_such_task"):
        run(language_model, own_tasks, "no_such_task")
