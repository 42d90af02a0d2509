"""Whether the commands in the pages exist: those of `sleddog` are parsed by its own application, without being run."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import typer
import typer.main

from ray_jobs.data.command import app as data_app
from service.cli import app
from tests.docs.pages import ROOT

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
_SUBSTITUTION = re.compile(r"\$\([^()]*\)")
_EXTRAS = re.compile(r"sleddog\[([a-z0-9,-]+)\]")
_DIRECTORIES = ("tests/", "benchmarks/", "scripts/", "examples/", "deploy/")
_PUNCTUATION = set("|&;()<>")


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell's text, without assignments, comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(_SUBSTITUTION.sub("value", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quote that goes on in the next line: no command of ours does
            continue
        command: list[str] = []
        for before, word, after in zip(["", *words], [*words, ";"], [*words[1:], ";", ""], strict=True):
            if word.isdigit() and set(after) & set("<>"):  # as of 2>&1
                continue
            if set(word) <= _PUNCTUATION:
                if not set(word) & set("<>"):
                    yield from [command] if command else []
                    command = []
            elif not set(before) & set("<>") and not (not command and re.match(r"\w+=", word)):
                command.append(word)


def fault_of(words: list[str]) -> str | None:
    """What is wrong with a command, where it is one that this project can know."""
    if found := sleddog_arguments(words):
        return sleddog_fault(found[1:])
    program = words[0].rsplit("/", 1)[-1]
    if program == "make":
        return next((f"no target {word}" for word in words[1:] if word.isidentifier() and not _has_target(word)), None)
    if program.startswith("python") and "-m" in words:
        module = words[words.index("-m") + 1]
        return None if find_spec(module) else f"no module {module}"
    if program.startswith("python") or program == "pytest":
        paths = [
            word.partition("::")[0] for word in words[1:] if word.startswith(("tests/", "benchmarks/", "scripts/"))
        ]
        return next((f"no file {path}" for path in paths if not (ROOT / path).exists()), None)
    return extras_fault(" ".join(words)) if program == "pip" else None


def sleddog_arguments(words: list[str]) -> list[str] | None:
    """`sleddog` and what follows it, where it is what is run: first, or behind `--` or in a container."""
    for place, word in enumerate(words):
        is_run = place == 0 or words[place - 1] == "--" or words[0] == "docker"
        if is_run and (word == "sleddog" or word.endswith("/bin/sleddog")):
            return words[place:]
    return None


def sleddog_fault(arguments: list[str]) -> str | None:
    """What the application says of arguments."""
    try:
        _silent(app).main(list(arguments), prog_name="sleddog", standalone_mode=False)
        if arguments[:1] == ["data"] and arguments[1:2] != ["prepare"]:  # which passes its options on
            _silent(data_app).main(arguments[1:], prog_name="sleddog data", standalone_mode=False)
    except _USAGE_ERROR as error:
        return str(error.format_message())
    except typer.Exit:
        pass
    return None


@cache
def _silent(application: typer.Typer) -> Any:
    """Its commands, which do nothing but take their arguments; nor does it change the shell's completion."""
    command = typer.main.get_command(application)
    _silence(command)
    return command


def _silence(command: Any) -> None:
    command.callback = lambda **_: None
    command.params = [parameter for parameter in command.params if not parameter.name.endswith("_completion")]
    for inner in getattr(command, "commands", {}).values():
        _silence(inner)


def span_fault(span: str) -> str | None:
    """What is wrong with a command in running text, which may stop short of its arguments."""
    words = shlex.split(span)
    command = _commands()
    for place, word in enumerate(words[1:], 1):
        inner = getattr(command, "commands", None)
        if word.startswith("-"):
            name = word.partition("=")[0]
            options = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            if name not in options | {"--help"} and not command.context_settings.get("ignore_unknown_options"):
                return f"{' '.join(words[:place])} has no {name}"
        elif inner is not None and words[place - 1] != "--profile":
            if word not in inner:
                return f"{' '.join(words[:place])} has no command {word}"
            command = inner[word]
    return None


@cache
def _commands() -> Any:
    return typer.main.get_command(app)


def extras_fault(text: str) -> str | None:
    """Whether the extras that are installed exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for found in _EXTRAS.findall(text) for extra in found.split(",")}
    return next((f"no extra {extra}" for extra in sorted(named - set(known))), None)


def _has_target(name: str) -> bool:
    return re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
