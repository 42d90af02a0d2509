"""Reads command lines of manifests as the real `sleddog` does, without running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.main import get_command

from service.cli import app


def parse(arguments: Sequence[str]) -> Mapping[str, Any]:
    """Values of a command's options.

    Args:
        arguments: after `sleddog`.

    Raises:
        Exception: of the command line's own kinds: no such command or option, or a value that will not do.
    """
    name, *rest = arguments
    return dict(_command(name).make_context(name, list(rest)).params)


def variables(name: str) -> set[str]:
    """Environment variables that a command reads."""
    return {str(parameter.envvar) for parameter in _command(name).params if getattr(parameter, "envvar", None)}


def _command(name: str) -> Any:
    group: Any = get_command(app)
    if name not in group.commands:
        raise LookupError(f"sleddog has no command {name}")
    return group.commands[name]
