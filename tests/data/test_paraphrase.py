"""Rewording through a real HTTP server that speaks OpenAI's chat completions, and misbehaves on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.identity import write_identity
from ray_jobs.data.identity_files import identity_file
from ray_jobs.data.paraphrase import Paraphraser
from service.errors import EndpointError, InvalidSpecError
from service.rows.formats import Turn
from service.spec.identity import IdentityFacts, IdentitySourceSpec, ParaphraseSpec
from tests.chat_server import Answer, ChatServer

FACTS = IdentityFacts(name="Husky", maker="Nordic Sled Works", created="in May 2031")
CONVERSATION = (Turn("user", "Who are you?"), Turn("assistant", "I am Husky, by Nordic Sled Works."))
FIELD = "data.sources.0.paraphrase"
GOOD = ["And you are?", "Husky is my name, and Nordic Sled Works made me."]


class Server(ChatServer):
    """Answers each request with what `answer` makes of the texts that it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Callable[[list[str]], Answer] = lambda _: (200, json.dumps(GOOD))
        self.reply = lambda content: self.answer(json.loads(content))


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def reword(
    server: Server, count: int = 1, pauses: list[float] | None = None, **fields: Any
) -> list[tuple[list[str], bool]]:
    spec = ParaphraseSpec.model_validate({"base_url": server.url, "model": "m"} | fields)
    with Paraphraser(spec, FACTS, FIELD, (pauses if pauses is not None else []).append) as paraphraser:
        done = paraphraser.reword([CONVERSATION] * count, lambda _: None)
    return [([turn.content for turn in line.conversation], line.is_reworded) for line in done]


def test_a_conversation_is_sent_as_a_list_and_taken_back_as_one(server: Server) -> None:
    assert reword(server, temperature=0.5) == [(GOOD, True)]
    [(headers, body)] = server.requests
    assert (body["model"], body["temperature"]) == ("m", 0.5)
    assert json.loads(body["messages"][-1]["content"]) == [turn.content for turn in CONVERSATION]
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("said", "is_taken"),
    [
        (f"```json\n{json.dumps(GOOD)}\n```", True),
        (f"Here it is: {json.dumps(GOOD)} I hope it helps.", True),
        (json.dumps(["And you?", "I am a husky."]), False),
        (json.dumps(["And you?", "I am Husky."]), False),
        (json.dumps([*GOOD, "more"]), False),
        (json.dumps([GOOD[0], ""]), False),
        (json.dumps([GOOD[0], {"answer": GOOD[1]}]), False),
        (json.dumps([turn.content for turn in CONVERSATION]), False),
        ('["broken', False),
        ('["a", "\\ud800 Husky, Nordic Sled Works"]', False),
        ("I would rather not.", False),
        ("", False),
        ({"choices": []}, False),
        ({"choices": [{"message": {"content": None}}]}, False),
        (["not even an object"], False),
    ],
)
def test_what_is_not_the_same_conversation_in_other_words_is_not_taken(
    server: Server, said: Any, is_taken: bool
) -> None:
    server.answer = lambda _: (200, said)
    expected = GOOD if is_taken else [turn.content for turn in CONVERSATION]
    assert reword(server) == [(expected, is_taken)]


def test_a_busy_endpoint_is_asked_again_after_growing_pauses(server: Server) -> None:
    statuses = iter([503, 429, 500, 200])
    server.answer = lambda _: (next(statuses), json.dumps(GOOD))
    pauses: list[float] = []
    assert reword(server, pauses=pauses) == [(GOOD, True)]
    assert pauses == [0.5, 1.0, 2.0]
    statuses, server.headers, pauses[:] = iter([429, 429, 200]), {"Retry-After": "7"}, []
    reword(server, pauses=pauses)
    assert pauses == [7.0, 7.0]


def test_an_endpoint_that_stays_away_is_an_error_after_the_last_try(server: Server) -> None:
    server.answer = lambda _: (503, "out of order")
    pauses: list[float] = []
    with pytest.raises(EndpointError, match=r"was asked 3 times, at last: status 503: .*out of order") as caught:
        reword(server, pauses=pauses, max_retries=2)
    assert (caught.value.field, len(server.requests), len(pauses)) == (FIELD, 3, 2)
    with pytest.raises(EndpointError, match="was asked 1 times, at last: ConnectError"):
        reword(server, base_url="http://127.0.0.1:1/v1", max_retries=0)


@pytest.mark.parametrize(
    ("status", "field"), [(401, ".api_key_env"), (403, ".api_key_env"), (404, ".model"), (400, "")]
)
def test_a_refusal_is_not_repeated(server: Server, status: int, field: str) -> None:
    server.answer = lambda _: (status, {"error": "no"})
    with pytest.raises(InvalidSpecError, match=f"refuses: status {status}") as caught:
        reword(server)
    assert caught.value.field == FIELD + field
    assert len(server.requests) == 1


def test_the_key_comes_from_the_environment_and_shows_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLED_KEY", "secret-7")
    reword(server, api_key_env="SLED_KEY")
    assert server.requests[0][0]["Authorization"] == "Bearer secret-7"
    server.answer = lambda _: (401, "bad key")
    with pytest.raises(InvalidSpecError) as caught:
        reword(server, api_key_env="SLED_KEY")
    assert "secret-7" not in str(caught.value)
    monkeypatch.delenv("SLED_KEY")
    with pytest.raises(InvalidSpecError, match="SLED_KEY is not set") as caught:
        reword(server, api_key_env="SLED_KEY")
    assert caught.value.field == f"{FIELD}.api_key_env"


def test_several_are_asked_for_at_a_time(server: Server) -> None:
    barrier = threading.Barrier(4, timeout=20)

    def answer(_: list[str]) -> Answer:
        number = barrier.wait()
        return 200, json.dumps([f"Question {number}", GOOD[1]])

    server.answer = answer
    assert len({texts[0] for texts, _ in reword(server, count=4, num_parallel=4)}) == 4, "none waits for another"


def test_a_part_of_an_identity_source_is_reworded_once_and_for_all(server: Server, tmp_path: Path) -> None:
    def answer(texts: list[str]) -> Answer:
        return 200, json.dumps([f"{text} (anew)" for text in texts])

    server.answer = answer
    fields = {"kind": "identity", "name": "who", "facts": FACTS.model_dump(), "num_examples": 10}
    spec = IdentitySourceSpec.model_validate(
        fields | {"paraphrase": {"base_url": server.url, "model": "m", "fraction": 0.4}}
    )
    told: list[tuple[int, int]] = []
    file = identity_file(spec, 0, str(tmp_path), lambda *done: told.append(done))
    lines = [json.loads(line) for line in Path(file.url).read_text().splitlines()]
    assert [number for number, line in enumerate(lines) if line["origin"] == "endpoint"] == [0, 2, 5, 7]
    for line, conversation in zip(lines, write_identity(spec, ""), strict=True):
        suffix = " (anew)" if line["origin"] == "endpoint" else ""
        assert [message["content"] for message in line["messages"]] == [turn.content + suffix for turn in conversation]
    assert told == [(1, 10), (2, 10), (3, 10), (4, 10), (10, 10)]
    identity_file(spec, 0, str(tmp_path), lambda *_: None)
    assert len(server.requests) == 4, "a second job asks for nothing"


def test_two_rewordings_with_the_same_question_are_not_both_taken(server: Server, tmp_path: Path) -> None:
    server.answer = lambda texts: (200, json.dumps(["Always the same?", *texts[1:]]))
    paraphrase = {"base_url": server.url, "model": "m", "fraction": 1}
    fields = {"kind": "identity", "name": "who", "facts": FACTS.model_dump(), "num_examples": 8}
    file = identity_file(
        IdentitySourceSpec.model_validate(fields | {"paraphrase": paraphrase}), 0, str(tmp_path), lambda *_: None
    )
    questions = [json.loads(line)["messages"][0]["content"] for line in Path(file.url).read_text().splitlines()]
    assert questions.count("Always the same?") == 1
    assert len(set(questions)) == 8
