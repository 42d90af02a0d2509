"""Every command of `sleddog` with its arguments and options, from the Typer application itself.

Some commands of `sleddog data` hand their options on to the program that reads the data; theirs are that program's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from ray_jobs.data.command import app as data_app
from scripts.reference.markdown import code, prose, table, target
from service.cli import app

_WORDS = {str: "text", int: "integer", float: "number", Path: "path"}


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the command of each, groups before what is in them."""
    yield from _below(("sleddog",), typer.main.get_command(app))


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if command.context_settings.get("ignore_unknown_options"):
        command = typer.main.get_command(data_app).commands[path[-1]]  # type: ignore[attr-defined]  a group's
    yield path, command
    for name in sorted(getattr(command, "commands", {})):
        yield from _below((*path, name), command.commands[name])


def commands_page() -> list[str]:
    """Lines: a section of each command."""
    lines: list[str] = []
    for path, command in commands():
        lines += [f"({target('cli', *path)})=", f"## {' '.join(path)}", ""]
        lines += [prose(paragraph) + "\n" for paragraph in (command.help or "").split("\n\n") if paragraph]
        lines += _parameters(command)
        if inner := getattr(command, "commands", {}):
            links = [f"[{name}](#{target('cli', *path, name)})" for name in sorted(inner)]
            lines += ["Commands: " + ", ".join(links) + ".", ""]
    return lines


def _parameters(command: Any) -> list[str]:
    arguments, options = [], []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        help_text = prose(parameter.help or "") if getattr(parameter, "help", None) else ""
        if parameter.param_type_name == "argument":
            default = "required" if parameter.required else _default(parameter)
            arguments.append((code(parameter.name.upper()), default, help_text))
        else:
            names = ", ".join(code(name) for name in (*parameter.opts, *parameter.secondary_opts))
            options.append(
                (
                    names,
                    _value(parameter),
                    _default(parameter),
                    code(parameter.envvar) if parameter.envvar else "",
                    help_text,
                )
            )
    return [
        *table(("argument", "default", "meaning"), arguments),
        *table(("option", "value", "default", "environment", "meaning"), options),
    ]


def _value(parameter: Any) -> str:
    if parameter.is_flag:
        return "flag"
    annotation = parameter.type_descriptor.annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    text = ", ".join(code(choice) for choice in choices) or _WORDS.get(annotation, "text")
    return f"{text}, repeatable" if parameter.multiple else text


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.param_type_name == "option" and parameter.required:
        return "required"
    return "" if value is None or value is False or callable(value) or value == () else code(str(value))
