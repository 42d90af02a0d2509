"""Row forms: what becomes a conversation, and the reason when nothing does."""

from __future__ import annotations

import itertools
import unicodedata
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rows.formats import (
    MAX_CHARS,
    ROLES,
    Conversation,
    NotAConversationError,
    RowReader,
    Turn,
    require_order,
)
from service.spec.source import ColumnsForm, NamedForm, RowForm, TurnsForm

ASKED = (Turn("user", "Who?"), Turn("assistant", "Me."))


def to_conversation(row: Any, form: RowForm) -> Conversation:
    [conversation] = RowReader(form).read(row)
    require_order(conversation)
    return conversation


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
        ("sharegpt", {"conversations": [{"from": "bird", "value": "a"}]}, "unknown role 'bird'"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}, "no assistant turn"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(form: RowForm, row: Any, reason: str) -> None:
    with pytest.raises(NotAConversationError, match=reason):
        to_conversation(row, form)


def columns(**fields: Any) -> ColumnsForm:
    return ColumnsForm.model_validate({"kind": "columns", **fields})


def turns(**fields: Any) -> TurnsForm:
    return TurnsForm.model_validate({"kind": "turns", **fields})


def test_columns_of_any_name_make_a_conversation() -> None:
    form = columns(prompt="question", completion="answer", system="instructions")
    row = {"question": "Who?", "answer": "Me."}
    assert to_conversation(row, form) == ASKED
    assert to_conversation(row | {"instructions": ""}, form) == ASKED
    assert to_conversation(row | {"instructions": "Be brief."}, form) == (Turn("system", "Be brief."), *ASKED)
    assert RowReader(form).columns == ("question", "answer", "instructions")


def test_a_template_puts_columns_into_text() -> None:
    form = columns(prompt="{question}\n{{A or B}}", completion="{why}\nSo it is {answer}.")
    row = {"question": "A?", "why": "Because {not} a column.", "answer": "B"}
    assert to_conversation(row, form) == (
        Turn("user", "A?\n{A or B}"),
        Turn("assistant", "Because {not} a column.\nSo it is B."),
    )
    assert RowReader(form).columns == ("question", "why", "answer")
    with pytest.raises(NotAConversationError, match="no field 'why'"):
        to_conversation({"question": "A?", "answer": "B"}, form)


def test_turns_of_any_name_make_a_conversation() -> None:
    form = turns(turns="utterances", role="speaker", content="text", roles={"USER": "user", "SYSTEM": "assistant"})
    row = {"utterances": [{"speaker": "USER", "text": "Who?"}, {"speaker": "SYSTEM", "text": "Me."}]}
    assert to_conversation(row, form) == ASKED
    assert RowReader(form).columns == ("utterances",)
    row["utterances"][0]["speaker"] = "user"
    with pytest.raises(NotAConversationError, match="unknown role 'user'"):
        to_conversation(row, form)


def test_replacement_is_literal_and_all_at_once() -> None:
    reader = RowReader("prompt_completion", {"\\n": "\n", "a.": "b", "a.c": "a.", "</s>": ""})
    assert reader.read({"prompt": r"a\nb", "completion": "a.c a. abc</s>"}) == [
        (Turn("user", "a\nb"), Turn("assistant", "a. b abc"))
    ]
    [emptied] = reader.read({"prompt": "a", "completion": "</s>"})
    with pytest.raises(NotAConversationError, match="the last assistant turn is empty"):
        require_order(emptied)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("user user assistant", "turns 1 and 2 are both the user's"),
        ("user assistant assistant", "turns 2 and 3 are both the assistant's"),
        ("user system assistant", "turn 2 is the system's, which comes first"),
        ("system system user assistant", "turn 2 is the system's"),
        ("user tool assistant", "turn 2 is a tool's, and the assistant's is not before it"),
        ("user assistant system", "the last turn is the system's"),
        ("user assistant user assistant", None),
        ("system user assistant tool tool assistant user assistant", None),
        ("assistant user assistant", None),
    ],
)
def test_turns_must_take_their_order(roles: str, reason: str | None) -> None:
    row = _messages(*((role, f"text {number}") for number, role in enumerate(roles.split())))
    if reason is None:
        assert [turn.role for turn in to_conversation(row, "messages")] == roles.split()
    else:
        with pytest.raises(NotAConversationError, match=reason):
            to_conversation(row, "messages")


def test_a_turn_of_ten_million_characters_is_no_conversation() -> None:
    fits = "x" * (MAX_CHARS - 1)
    assert to_conversation({"prompt": "a", "completion": fits}, "prompt_completion")[1].content == fits
    with pytest.raises(NotAConversationError, match="4,194,305 characters, more than 4,194,304"):
        to_conversation({"prompt": "ab", "completion": fits}, "prompt_completion")
    with pytest.raises(NotAConversationError, match="10,000,001 characters"):
        to_conversation({"prompt": "a", "completion": "x" * 10_000_000}, "prompt_completion")


WORDS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "role",
    "content",
    "from",
]
KEYS = st.sampled_from([*WORDS, "value"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(ROLES)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5))
TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text(max_size=4)}), max_size=6)


@given(JSON | st.builds(lambda turns: {"messages": turns}, TURNS), st.sampled_from(get_args(NamedForm)))
@settings(max_examples=300, deadline=None, database=None)
def test_any_row_is_an_ordered_conversation_or_none(row: Any, form: NamedForm) -> None:
    try:
        conversation = to_conversation(row, form)
    except NotAConversationError:
        return
    roles = [turn.role for turn in conversation]
    assert set(roles) <= set(ROLES)
    assert roles[-1] == "assistant"
    assert "system" not in roles[1:]
    assert all(before != after or before == "tool" for before, after in itertools.pairwise(roles))
    assert conversation[-1].content.strip()
    assert all(unicodedata.is_normalized("NFC", turn.content) for turn in conversation)
