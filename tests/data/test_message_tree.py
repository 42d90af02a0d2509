"""Trees of messages: which threads they give, in which order, and what is left out."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rows.formats import NotAConversationError, RowReader, require_order
from service.rows.message_tree import MessageTree
from service.rows.normalise import Row, normalised
from service.rows.raw_rows import RawRow
from service.spec.source import TreeForm


def form(**fields: Any) -> TreeForm:
    return TreeForm.model_validate({"kind": "tree", **fields})


def asked(text: str, *replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "prompter", "text": text, "lang": "en", "replies": list(replies), **fields}


def answered(text: str, *replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return asked(text, *replies, **{"role": "assistant", "deleted": False, "review_result": True, **fields})


def threads(root: Any, **fields: Any) -> list[str]:
    """Each conversation's texts in one word."""
    conversations = RowReader(form(**fields)).read({"prompt": root})
    for conversation in conversations:
        require_order(conversation)
    return ["".join(turn.content for turn in conversation) for conversation in conversations]


TREE = asked(
    "q",
    answered("a", asked("b", answered("c"))),
    answered("d", asked("e"), asked("f", answered("h", rank=1), answered("i", rank=0)), asked("g"), rank=1),
    answered("j", asked("k"), rank=2),
    answered("l", rank=0),
)


def test_the_best_thread_takes_the_best_reply_each_time() -> None:
    assert threads(TREE) == ["ql"]
    TREE_without_l = {**TREE, "replies": TREE["replies"][:-1]}
    assert threads(TREE_without_l) == ["qdfi"], "what is ranked comes first, and an unanswered reply is no way on"


def test_all_threads_come_best_first_each_to_its_last_answer() -> None:
    assert threads(TREE, threads="all") == ["ql", "qdfi", "qdfh", "qj", "qabc"]


def test_replies_of_equal_rank_or_none_keep_their_order() -> None:
    replies = [answered("c", rank=2.0), answered("a"), answered("d", rank=2), answered("b", rank=None)]
    assert threads(asked("q", *replies), threads="all") == ["qc", "qd", "qa", "qb"]
    unranked = [answered("a", rank=float("nan")), answered("b", rank=10**400), answered("c", rank=float("nan"))]
    assert threads(asked("q", *unranked), threads="all") == ["qb", "qa", "qc"]


def test_what_is_excluded_takes_its_replies_along() -> None:
    tree = asked(
        "q",
        answered("a", asked("b", answered("c")), deleted=True, rank=0),
        answered("d", review_result=False, rank=1),
        answered("e", review_result=None, rank=2),
        answered("f", synthetic=True, rank=3),
    )
    assert threads(tree, threads="all") == ["qe", "qf"]
    assert threads(tree, threads="all", exclude={"synthetic": True}) == ["qabc", "qd", "qe"]
    assert threads(tree, threads="all", exclude={}) == ["qabc", "qd", "qe", "qf"]


def test_languages_are_taken_by_message() -> None:
    tree = asked("q", answered("a", lang="de", rank=0), answered("b", asked("c", lang="de"), rank=1))
    assert threads(tree) == ["qa"]
    assert threads(tree, languages=["en"]) == ["qb"]
    assert threads(tree, languages=["de"]) == [], "the root is in English"
    del tree["replies"][0]["lang"]
    with pytest.raises(NotAConversationError, match="'lang' of a message is not text but NoneType"):
        threads(tree, languages=["en"])


def test_a_tree_of_any_names_is_read() -> None:
    leaf = {"who": "bot", "says": "yes", "score": 1}
    row = {"first": {"who": "man", "says": "so?", "next": [{**leaf, "says": "no", "score": 2}, leaf]}}
    names = {"root": "first", "replies": "next", "role": "who", "content": "says", "rank": "score"}
    reader = RowReader(form(**names, roles={"man": "user", "bot": "assistant"}), {"yes": "ja"})
    assert reader.columns == ("first",)
    [conversation] = reader.read(row)
    assert [tuple(turn) for turn in conversation] == [("user", "so?"), ("assistant", "ja")]


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (None, "a message is no object but NoneType"),
        ([], "a message is no object but list"),
        ({}, "'role' of a message is not text but NoneType"),
        (asked("q"), "no assistant turn"),
        (asked("q", replies=None), "no assistant turn"),
        (asked("q", replies="a"), "'replies' is no list of messages but str"),
        (asked("q", None), "a message is no object but NoneType"),  # type: ignore[arg-type]
        (asked("q", answered("a", role=None)), "'role' of a message is not text but NoneType"),
        (asked("q", answered("a", rank="first")), "'rank' is no number but str"),
        (asked("q", answered("a", rank=True)), "'rank' is no number but bool"),
        (asked("q", answered(None)), r"thread\[1\]: 'text' is not text but NoneType"),  # type: ignore[arg-type]
        (asked("q", answered("\ud83d")), r"thread\[1\]: 'text' holds half a surrogate pair"),
        (asked("q", answered("a"), role="robot"), "unknown role 'robot'"),
        (asked("q", answered("a" * 10_000_000)), "10,000,001 characters, more than 4,194,304"),
    ],
)
def test_a_tree_that_is_none_says_why(root: Any, reason: str) -> None:
    with pytest.raises(NotAConversationError, match=reason):
        RowReader(form()).read({"prompt": root})
    with pytest.raises(NotAConversationError, match="no field 'prompt'"):
        RowReader(form()).read({"root": root})


def test_a_broken_thread_costs_itself_and_an_empty_tree_is_no_bad_row() -> None:
    broken = asked("q", answered("a", answered("b"), rank=0), answered(" ", rank=1), answered("c", rank=2))
    german = asked("q", answered("a"), lang="de")
    rows = [RawRow(1, {"prompt": broken}), RawRow(2, {"prompt": german}), RawRow(3, {"prompt": asked("q")})]
    read = list(normalised(rows, RowReader(form(threads="all", languages=["en"]))))
    assert [(row.number, row.thread, row.reason) for row in read] == [
        (1, 1, "turns 2 and 3 are both the assistant's"),
        (1, 2, "the last assistant turn is empty"),
        (1, 3, None),
        (2, 1, None),
        (3, 1, "no assistant turn"),
    ]
    assert "".join(turn.content for turn in read[2].first) == "qab", "the row's first thread, though it is broken"
    assert read[3] == Row(2, ()), "left out, and not for a fault of its own"
    assert read[4].excerpt.startswith('{"prompt": {"role": "prompter"')


def test_threads_that_repeat_a_long_beginning_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rows.formats.MAX_CHARS", 20_000)
    tree = asked("q" * 200, *(answered(str(number)) for number in range(97)))
    assert len(threads(tree, threads="all")) == 97
    tree["replies"] *= 2
    with pytest.raises(NotAConversationError, match="characters, more than 20,000"):
        threads(tree, threads="all")
    assert len(threads(tree)) == 1
    comb = node = asked("")
    for _ in range(1500):  # deeper than Python recurses: two million turns in its threads, and no character
        node["replies"] = [answered("", step := asked("")), answered("")]
        node = step
    node["replies"] = [answered("")]
    with pytest.raises(NotAConversationError, match="characters, more than 20,000"):
        threads(comb, threads="all")


MESSAGES = st.recursive(
    st.builds(
        lambda role, rank: asked("", role=role, rank=rank), st.sampled_from(["prompter", "assistant"]), st.none()
    ),
    lambda inner: st.builds(
        lambda role, rank, replies, deleted: asked("", *replies, role=role, rank=rank, deleted=deleted),
        st.sampled_from(["prompter", "assistant"]),
        st.none() | st.integers(0, 3),
        st.lists(inner, max_size=3),
        st.booleans(),
    ),
    max_leaves=12,
)


def reference(message: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All threads by recursion: the ways to a leaf up to the last answer, without those that begin another."""
    if message["deleted"]:
        return []
    path = (*before, message["text"])
    replies = sorted(message["replies"], key=lambda reply: 9 if reply["rank"] is None else reply["rank"])
    below = [thread for reply in replies for thread in reference(reply, path)]
    return below or ([path] if message["role"] == "assistant" else [])


@given(MESSAGES)
@settings(max_examples=100, deadline=None, database=None)
def test_any_tree_gives_what_recursion_gives(root: dict[str, Any]) -> None:
    numbers = itertools.count()

    def name(message: dict[str, Any]) -> None:
        message["text"] = f"message {next(numbers)}"
        message.setdefault("deleted", False)
        for reply in message["replies"]:
            name(reply)

    root = json.loads(json.dumps(root))
    name(root)
    expected = reference(root)
    for which, wanted in (("all", expected), ("best", expected[:1])):
        reader = RowReader(form(threads=which))
        if not wanted and not MessageTree(root, form()).is_cut:
            with pytest.raises(NotAConversationError, match="no assistant turn"):
                reader.read({"prompt": root})
        else:
            found = reader.read({"prompt": root})
            assert [tuple(turn.content for turn in conversation) for conversation in found] == wanted
