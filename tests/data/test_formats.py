"""Row forms: what becomes a conversation, and the reason when nothing does."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.data.formats import NotAConversationError, Turn, to_conversation
from service.spec.data import RowForm

ASKED = (Turn("user", "Who?"), Turn("assistant", "Me."))


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}),
        ("prompt_completion", {"prompt": "Who?", "completion": "Me.", "id": 7}),
        ("alpaca", {"instruction": "Who?", "input": "", "output": "Me."}),
        ("alpaca", {"instruction": "Who?", "input": None, "output": "Me."}),
        ("alpaca", {"instruction": "Who?", "response": "Me."}),
        ("alpaca", {"instruction": "Who?", "output": None, "response": "Me."}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}),
        ("sharegpt", {"conversations": [{"from": "user", "value": "Who?"}, {"from": "assistant", "value": "Me."}]}),
    ],
)
def test_every_form_gives_the_same_conversation(form: RowForm, row: dict[str, Any]) -> None:
    assert to_conversation(row, form) == ASKED


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert to_conversation(row, "alpaca")[0] == Turn("user", "Add.\n\n1, 2")


def test_all_roles_and_turns_are_kept_in_order() -> None:
    messages = [
        {"role": role, "content": f"{role} {number}", "name": "ignored"}
        for number, role in enumerate(["system", "user", "assistant", "tool", "assistant"])
    ]
    conversation = to_conversation({"messages": messages}, "messages")
    assert conversation == tuple(Turn(message["role"], message["content"]) for message in messages)


def test_text_is_composed_and_otherwise_untouched() -> None:
    decomposed, composed = "  cafe\u0301\n", "  caf\u00e9\n"
    conversation = to_conversation({"prompt": decomposed, "completion": decomposed}, "prompt_completion")
    assert conversation == (Turn("user", composed), Turn("assistant", composed))


def _messages(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("messages", None, "not an object but NoneType"),
        ("messages", ["a"], "not an object but list"),
        ("messages", {}, "no field 'messages'"),
        ("messages", {"messages": None}, "'messages' is no list of turns"),
        ("messages", {"messages": []}, "'messages' is no list of turns"),
        ("messages", {"messages": "hello"}, "'messages' is no list of turns"),
        ("messages", {"messages": [None]}, r"messages\[0\] is no object"),
        ("messages", {"messages": [{"role": "user"}]}, r"messages\[0\]: no field 'content'"),
        ("messages", _messages(("user", "a"), ("assistant", None)), r"messages\[1\]: 'content' is not text but None"),
        ("messages", _messages(("user", [{"type": "text", "text": "a"}])), r"messages\[0\]: 'content' is not text but"),
        ("messages", _messages(("user", "a"), ("robot", "b")), "unknown role 'robot'"),
        ("messages", _messages(("user", "a"), ("assistant", "b"), ("user", "c")), "the last turn is the user's"),
        ("messages", _messages(("system", "a"), ("user", "b")), "no assistant turn"),
        ("messages", _messages(("user", "a"), ("assistant", " \n")), "the last assistant turn is empty"),
        ("messages", _messages(("user", "a"), ("assistant", "\ud83d")), "half a surrogate pair"),
        ("prompt_completion", {"prompt": "a"}, "no field 'completion'"),
        ("prompt_completion", {"prompt": " ", "completion": "b"}, "the prompt is empty"),
        ("prompt_completion", {"prompt": "a", "completion": 7}, "'completion' is not text but int"),
        ("prompt_completion", {"prompt": "a", "completion": {"text": "b"}}, "'completion' is not text but dict"),
        ("alpaca", {"instruction": "a"}, "no field 'output'"),
        ("alpaca", {"instruction": "a", "output": None}, "'output' is not text but NoneType"),
        ("alpaca", {"instruction": "a", "input": ["b"], "output": "c"}, "'input' is not text but list"),
        ("sharegpt", {"conversations": [{"from": "bird", "value": "a"}]}, "unknown speaker 'bird'"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}, "no assistant turn"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(form: RowForm, row: Any, reason: str) -> None:
    with pytest.raises(NotAConversationError, match=reason):
        to_conversation(row, form)
