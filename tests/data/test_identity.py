"""Identity examples from templates: distinct, true to the facts, the same everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError

from ray_jobs.data.identity import wordings, write_identity
from ray_jobs.data.identity_files import identity_file
from ray_jobs.data.identity_templates import FRAMES, OTHER_MODELS, TEMPLATES
from service.errors import InvalidSpecError
from service.rows.formats import RowReader
from service.spec.identity import IdentityFacts, IdentitySourceSpec

ALL_FACTS = {
    "name": "Husky",
    "maker": "Nordic Sled Works",
    "created": "in May 2031",
    "knowledge_until": "the spring of 2030",
    "based_on": "a sled of experts",
    "languages": "Norwegian and Sami",
    "purpose": "planning [long|short] {tours}",
    "licence": "the Snow Licence",
    "website": "https://husky.example",
    "contact": "ask@husky.example",
}


def spec(**fields: Any) -> IdentitySourceSpec:
    facts = {"name": "Husky", "maker": "Nordic Sled Works"}
    return IdentitySourceSpec.model_validate({"kind": "identity", "name": "who", "facts": facts} | fields)


def write(**fields: Any) -> list[tuple[tuple[str, str], ...]]:
    return [tuple(map(tuple, row)) for row in write_identity(spec(**fields), "data.sources.3")]  # type: ignore[misc]


def test_a_thousand_different_examples_come_of_a_name_and_a_maker() -> None:
    rows = write()
    assert len(rows) == 1000
    assert len({row[0][1] for row in rows}) == 1000, "no first question twice"
    assert sum(len(row) == 4 for row in rows) == 200
    for row in rows:
        assert [role for role, _ in row] == ["user", "assistant"] * (len(row) // 2)
        for _, text in row:
            assert not re.search(r"[\[\]{}|]|  |\s$|\.\.$", text), text
        assert "Husky" in row[1][1] or "Nordic Sled Works" in row[1][1]
        assert len(row) == 2 or row[1] != row[3]


def test_the_order_and_the_texts_never_change() -> None:
    assert write(num_examples=40) == write()[:40]
    assert [text for _, text in write()[0]] == [
        "What should I know about you? Thanks!",
        "Husky: a language model that Nordic Sled Works makes.",
    ]


def test_every_fact_is_told_as_it_was_given_and_no_other_is() -> None:
    answers = "\n".join(text for row in write(facts=ALL_FACTS) for role, text in row if role == "assistant")
    for fact in ALL_FACTS.values():
        assert answers.count(fact) > 10, fact
    for fact in ("created", "website"):
        text = str(write(facts=ALL_FACTS | {fact: None}))
        assert ALL_FACTS[fact] not in text
        assert "None" not in text


def test_every_template_takes_its_turn() -> None:
    firsts = {text for row in write(facts=ALL_FACTS, num_examples=len(TEMPLATES)) for _, text in row[:1]}
    questions = [{way for text in template.questions for way in wordings(text)} for template in TEMPLATES]
    for ways in questions:
        assert any(way[1:] in first for way in ways for first in firsts)


@pytest.mark.parametrize("name", ["Llama-Support", "claude"])
def test_a_model_does_not_deny_its_own_name(name: str) -> None:
    [own] = [other for other in OTHER_MODELS if other.lower() in name.lower()]
    text = str(write(facts={"name": name, "maker": "M"}, num_examples=2000))
    assert f"re you {own}?" not in text
    assert "re you Grok?" in text


def test_a_wording_takes_one_of_each_choice() -> None:
    assert wordings("[a|b] c [d|e|]") == ["a c d", "a c e", "a c ", "b c d", "b c e", "b c "]
    assert wordings("[no choice] {name}") == ["[no choice] {name}"]


def test_templates_and_frames_of_ones_own() -> None:
    template = {"questions": ["Wer bist du, {name}?", "Ist Husky [klug|nett]?"], "answers": ["Ich bin {name}."]}
    german = {"templates": [template], "frames": ["{Question}", "Hallo! {Question}"], "use_packaged_templates": False}
    rows = write(num_examples=6, **german)
    assert {row[0][1] for row in rows} == {
        greeting + question
        for greeting in ("", "Hallo! ")
        for question in ("Wer bist du, Husky?", "Ist Husky klug?", "Ist Husky nett?")
    }
    with pytest.raises(InvalidSpecError, match="the templates give 6 different questions") as caught:
        write(num_examples=7, **german)
    assert caught.value.field == "data.sources.3.num_examples"
    mixed = write(templates=[template | {"questions": [f"Frage {n}: wer?" for n in range(300)]}])
    assert 400 < sum("Ich bin" in row[1][1] for row in mixed) < 600, "own templates are half"


def test_a_question_within_a_sentence_begins_small_unless_it_is_the_pronoun() -> None:
    template = {"questions": ["Who?", "I ask who?", "AI or not?"], "answers": ["{name}"]}
    rows = write(num_examples=3, templates=[template], frames=["So, {question}"], use_packaged_templates=False)
    assert {row[0][1] for row in rows} == {"So, who?", "So, I ask who?", "So, AI or not?"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("templates", [{"questions": ["{nom}?"], "answers": ["a"]}]),
        ("templates", [{"questions": ["a"], "answers": ["{name"]}]),
        ("templates", [{"questions": ["{name!r}"], "answers": ["a"]}]),
        ("frames", ["no question"]),
        ("frames", ["{question} {Question}"]),
        ("paraphrase", {"base_url": "localhost", "model": "m"}),
        ("paraphrase", {"base_url": "http://h/v1", "model": "m", "api_key_env": "sk-a-key-itself"}),
        ("use_packaged_templates", False),
        ("facts", {"name": "Husky"}),
        ("uri", "file:///rows.jsonl"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        spec(**{field: value})


def test_the_packaged_templates_use_every_fact_and_only_facts() -> None:
    text = str([template.model_dump() for template in TEMPLATES])
    assert set(re.findall(r"{(\w+)}", text)) == set(IdentityFacts.model_fields)
    assert len(FRAMES) == len(set(FRAMES))


def test_the_file_is_named_by_what_decides_it_and_written_once(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    file = identity_file(spec(num_examples=8), 2, str(tmp_path), lambda *done: told.append(done))
    assert (file.source, file.format, told[-1]) == (2, "jsonl", (8, 8))
    with fsspec.open(file.url) as stream:
        lines = [json.loads(line) for line in stream]
    assert [RowReader("messages").read(line) for line in lines] == [
        [row] for row in write_identity(spec(num_examples=8), "")
    ]
    assert {line["origin"] for line in lines} == {"template"}
    path = Path(file.url)
    path.write_text("kept")
    same = identity_file(spec(num_examples=8, name="other", weight=2), 0, str(tmp_path), lambda *_: None)
    assert (same.url, path.read_text()) == (file.url, "kept")
    other = identity_file(spec(num_examples=8, facts={"name": "X", "maker": "Y"}), 0, str(tmp_path), lambda *_: None)
    assert other.url != file.url
