"""Judging through a real HTTP server that speaks OpenAI's chat completions."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_jobs.evaluate.language_model import LanguageModel, Messages
from ray_jobs.evaluate.mt_bench import MtBench, rating_of
from service.spec.evaluate import MtBenchTask
from tests.chat_server import Answer, ChatServer
from tests.evaluate.conftest import WriteRows

ROWS = [
    {"question_id": 1, "category": "writing", "turns": ["Write of snow.", "Shorter."]},
    {"question_id": 2, "category": "math", "turns": ["What is 2 + 2?", "And 3 + 3?"], "reference": ["4", "6"]},
]


@pytest.mark.parametrize(
    ("judgement", "rating"),
    [
        ("Good. Rating: [[8]]", 8),
        ("Rating: [[7.5]]", 7.5),
        ("Not [[3]], rather [[ 4 ]]", 4),
        ("Rating: [[10]]", 10),
        ("Rating: 8", None),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("Rating: [[good]]", None),
        ("", None),
    ],
)
def test_the_last_rating_in_double_brackets_counts(judgement: str, rating: float | None) -> None:
    assert rating_of(judgement) == rating


def task(server: ChatServer, uri: str, **judge: Any) -> MtBench:
    document = {"kind": "mt_bench", "uri": uri, "judge": {"base_url": server.url, "model": "m"} | judge}
    return MtBench(MtBenchTask.model_validate(document), "evaluate.tasks.0")


def parrot(messages: Messages) -> str:
    return f"{len(messages)}: {messages[-1]['content']}"


def test_both_turns_are_answered_and_rated(
    judge_server: ChatServer, write_lines: WriteRows, scripted: Callable[..., LanguageModel]
) -> None:
    ratings = {"1: Write": "[[8]]", "3: Shorter": "[[6]]", "1: What": "[[10]]", "3: And": "[[3]]"}
    judge_server.reply = lambda said: (200, next(f"So. {r}" for key, r in ratings.items() if f"judge]\n{key}" in said))
    result = task(judge_server, write_lines("q.jsonl", ROWS)).run(scripted(parrot), seed=0)
    assert [(sample["id"], sample["turn"], sample["rating"]) for sample in result.samples] == [
        (1, 1, 8),
        (1, 2, 6),
        (2, 1, 10),
        (2, 2, 3),
    ]
    second = result.samples[1]
    assert [message["content"] for message in second["prompt"]] == ["Write of snow.", "1: Write of snow.", "Shorter."]
    assert (second["answer"], second["judgement"], second["target"]) == ("3: Shorter.", "So. [[6]]", None)
    assert {name: (metric.score, metric.n) for name, metric in result.metrics.items()} == {
        "rating": (6.75, 4),
        "rating_turn_1": (9, 2),
        "rating_turn_2": (4.5, 2),
        "rating_math": (6.5, 2),
        "rating_writing": (7, 2),
    }
    by_answer = {body["messages"][1]["content"]: body for _, body in judge_server.requests}
    [math] = [body for content, body in by_answer.items() if "3: And" in content]
    assert math["messages"][1]["content"].endswith("[reference answer]\n6")
    assert "reference answer" in math["messages"][0]["content"]
    assert (math["model"], math["temperature"], math["max_tokens"]) == ("m", 0, 2048)
    assert not any("reference" in str(body) for content, body in by_answer.items() if "Write" in content)


def test_a_judgement_without_a_rating_is_counted_and_in_no_mean(
    judge_server: ChatServer, write_lines: WriteRows, scripted: Callable[..., LanguageModel]
) -> None:
    judge_server.reply = lambda said: (200, "I cannot say." if "judge]\n3: And" in said else "[[4]]")
    result = task(judge_server, write_lines("q.jsonl", ROWS)).run(scripted(parrot), seed=0)
    assert (result.metrics["rating"].score, result.metrics["rating"].n) == (4, 3)
    assert result.summary()["verdicts"] == {"rated": 3, "unparseable": 1}
    assert result.samples[3]["judgement"] == "I cannot say."
    judge_server.reply = lambda _: (200, "?")
    result = task(judge_server, write_lines("q.jsonl", ROWS)).run(scripted(parrot), seed=0)
    assert (result.failure, result.metrics) == ("the judge gave no rating that could be read", {})
    assert [sample["verdict"] for sample in result.samples] == ["unparseable"] * 4


def test_a_busy_judge_is_asked_again(
    judge_server: ChatServer,
    write_lines: WriteRows,
    scripted: Callable[..., LanguageModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("ray_jobs.endpoint.Endpoint.__init__.__defaults__", (pauses.append,))
    lock, asked = threading.Lock(), [0]

    def reply(_: str) -> Answer:
        with lock:
            asked[0] += 1
            return (503, "busy") if asked[0] <= 2 else (200, "[[5]]")

    judge_server.reply = reply
    result = task(judge_server, write_lines("q.jsonl", ROWS), num_parallel=1).run(scripted(parrot), seed=0)
    assert result.metrics["rating"].n == 4
    assert (asked[0], pauses) == (6, [0.5, 1.0])


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ({"max_retries": 0}, "was asked 1 times, at last: status 503"),
        ({"api_key_env": "SLED_NO_KEY"}, "evaluate.tasks.0.judge.api_key_env: .* SLED_NO_KEY is not set"),
        ({"base_url": "http://127.0.0.1:1", "max_retries": 0}, "ConnectError"),
    ],
)
def test_without_a_judge_the_task_has_failed_and_keeps_its_answers(
    judge: dict[str, Any],
    reason: str,
    judge_server: ChatServer,
    write_lines: WriteRows,
    scripted: Callable[..., LanguageModel],
) -> None:
    judge_server.reply = lambda _: (503, "out of order")
    result = task(judge_server, write_lines("q.jsonl", ROWS), **judge).run(scripted(parrot), seed=0)
    assert re.search(reason, result.failure or "")
    assert [(sample["verdict"], sample["answer"][:2]) for sample in result.samples] == [
        ("not_judged", f"{turn}:") for turn in (1, 3, 1, 3)
    ]


def test_categories_are_sampled_at_their_temperatures(
    judge_server: ChatServer,
    write_lines: WriteRows,
    language_model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, float, int]] = []
    answer = LanguageModel.answer

    def noted(model: Any, conversations: Any, limit: int, sampling: Any, seed: int) -> Any:
        asked.append((len(conversations), sampling.temperature, seed))
        return answer(model, conversations, limit, sampling, seed)

    monkeypatch.setattr(LanguageModel, "answer", noted)
    judge_server.reply = lambda _: (200, "[[5]]")
    spec = {"kind": "mt_bench", "uri": write_lines("q.jsonl", [*ROWS, ROWS[1]]), "max_new_tokens": 2}
    spec["judge"] = {"base_url": judge_server.url, "model": "m"}
    MtBench(MtBenchTask.model_validate(spec), "evaluate.tasks.0").run(language_model, seed=7)
    assert asked == [(2, 0.0, 7), (1, 0.7, 7), (2, 0.0, 8), (1, 0.7, 8)]
