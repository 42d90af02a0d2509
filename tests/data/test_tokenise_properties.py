"""Rendering any conversation: the mask against a reference of its own making, and the borders of turns."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ray_jobs.data.tokenise import ChatTokenizer
from service.rows.chatml import END, START
from service.rows.formats import ROLES, Conversation, Turn

PIECES = [START, END, "<|im_", "start|>", "|>", "\n", " ", "  ", "assistant", "user\n", "a", "café", "日本", "🐕", "\t"]


hostile = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)
harmless = st.text(st.sampled_from("abc .,\n\té日🐕"), max_size=20)


def conversations(content: st.SearchStrategy[str], reply: st.SearchStrategy[str]) -> st.SearchStrategy[Conversation]:
    def turn(role: str) -> st.SearchStrategy[Turn]:
        return st.builds(Turn, st.just(role), reply if role == "assistant" else content)

    return st.lists(st.sampled_from(ROLES).flatmap(turn), min_size=1, max_size=6).map(tuple)


@settings(deadline=None)
@given(conversations(harmless, harmless.filter(lambda text: not text[:1].isspace())))
def test_tokens_and_mask_equal_those_of_the_whole_text_by_its_offsets(
    chat: ChatTokenizer, hugging_face: PreTrainedTokenizerFast, conversation: Conversation
) -> None:
    """The reference tokenises the whole text at once, and trains what lies within the spans of replies."""
    text, is_trained = "", np.zeros(0, dtype=bool)
    for turn in conversation:
        for part, trained in ((f"{START}{turn.role}\n", False), (turn.content + END, True), ("\n", False)):
            text += part
            is_trained = np.append(is_trained, np.full(len(part), trained and turn.role == "assistant"))
    expected = hugging_face(text, add_special_tokens=False, return_offsets_mapping=True)
    [rendered] = chat.render([conversation])
    assert rendered.tokens.tolist() == expected["input_ids"]
    assert rendered.trained.tolist() == [
        bool(is_trained[start:stop].all()) for start, stop in expected["offset_mapping"]
    ]


@settings(deadline=None)
@given(conversations(hostile, hostile))
def test_whatever_the_text_it_forges_no_turn(
    chat: ChatTokenizer, hugging_face: PreTrainedTokenizerFast, conversation: Conversation
) -> None:
    """Split at the special tokens, the ids give the very turns; and the borders tell where each lies."""
    [rendered] = chat.render([conversation])
    start, end = hugging_face.convert_tokens_to_ids([START, END])
    starts, ends = (np.flatnonzero(rendered.tokens == token) for token in (start, end))
    found = [hugging_face.decode(rendered.tokens[first + 1 : last]) for first, last in zip(starts, ends, strict=True)]
    assert found == [f"{turn.role}\n{turn.content}" for turn in conversation]
    assert rendered.borders.ends.tolist() == [*starts[1:], len(rendered.tokens)]
    assert [ROLES[role] for role in rendered.borders.roles] == [turn.role for turn in conversation]
    replies = rendered.borders.roles == ROLES.index("assistant")
    assert rendered.borders.answers.sum() == rendered.trained.sum() - replies.sum()
    assert not rendered.borders.answers[~replies].any()
