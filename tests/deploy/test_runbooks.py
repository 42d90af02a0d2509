"""What the runbooks and the guide tell people to do can be done: commands, options, addresses and fields exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from service.cli import app
from service.spec.train import TrainSpec

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs" / "runbooks").glob("*.md")), ROOT / "docs" / "guides" / "observe.md"]
SECTIONS = ["What it means", "How to look", "What to do", "How to know that it is over"]
OTHERS_OPTIONS = {"--metrics-export-port", "--config"}
"""Of Ray and Prometheus."""


def calls_in(text: str) -> list[str]:
    """Calls of `sleddog` in blocks of commands."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if line.startswith("sleddog ")]


def mentions_in(text: str) -> list[str]:
    """Calls within sentences, or only a command's name."""
    return re.findall(r"`(sleddog [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def parse(call: str, *, is_mention: bool = False) -> None:
    """Parse a call as the command line does, without doing it; of a mention without arguments only the name.

    Raises:
        Exception: there is no such command, option or argument.
    """
    group = get_command(app)
    _, *words = shlex.split(call)
    context = group.make_context("sleddog", [], resilient_parsing=True)
    while hasattr(group, "get_command"):
        found = group.get_command(context, words[0]) if words else None
        if found is None:
            raise LookupError(f"no such command: {call}")
        group, words = found, words[1:]
    if words or not is_mention:
        group.make_context("sleddog", words, parent=context)


def options() -> set[str]:
    """All options of all commands."""

    def of(command: object) -> set[str]:
        parameters = getattr(command, "params", [])
        found = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
        return found.union(*(of(child) for child in getattr(command, "commands", {}).values()))

    return of(get_command(app))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    text = page.read_text()
    for call in calls_in(text):
        parse(call)
    for mention in mentions_in(text):
        parse(mention, is_mention=True)
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert named <= options() | OTHERS_OPTIONS


@pytest.mark.parametrize(
    "command", ["sleddog evnts job-1", "sleddog events", "sleddog logs --tali 3 job-1", "sleddog webhook x"]
)
def test_a_command_that_is_not_there_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_fields_of_training_exist(page: Path) -> None:
    assert set(re.findall(r"`train\.(\w+)", page.read_text())) <= set(TrainSpec.model_fields)


def test_addresses_exist() -> None:
    paths = json.loads((ROOT / "tests" / "service" / "openapi.json").read_text())["paths"]
    told = {path for page in PAGES for path in re.findall(r"\$SLEDDOG_URL(/[\w/{}]*)", page.read_text())}
    assert told
    assert told <= set(paths)


@pytest.mark.parametrize("page", PAGES[:-1], ids=lambda page: page.stem)
def test_a_runbook_says_what_it_must(page: Path) -> None:
    if page.stem == "index":
        listed = re.findall(r"^\| \[\w+\]\(([\w-]+)\.md\)", page.read_text(), re.MULTILINE)
        assert sorted(listed) == sorted(other.stem for other in PAGES[:-1] if other != page)
        return
    sections = re.split(r"^## (.*)$", page.read_text(), flags=re.MULTILINE)
    assert sections[1::2] == SECTIONS
    assert all(len(text.split()) >= 4 for text in sections[2::2])
