"""Every environment variable: those of options from the commands themselves, the others as listed here.

A test looks through the code for variables that are missing here.
"""

from __future__ import annotations

from collections.abc import Mapping

from scripts.reference.commands import commands
from scripts.reference.markdown import code, prose, table, target

OTHERS: Mapping[str, tuple[str, str]] = {
    "SLEDDOG_API_KEY_FILE": ("client, command", "File that holds the API key, where `SLEDDOG_API_KEY` is not set."),
    "XDG_CONFIG_HOME": ("client, command", "Where `sleddog/config.toml` lies; by default `~/.config`."),
    "XDG_CACHE_HOME": ("cluster", "Where compiled kernels are kept, below `sleddog`; by default `~/.cache`."),
    "CXX": ("cluster", "C++ compiler of the kernels for experts and duplicates; by default `c++`, `clang++` or `g++`."),
    "RAY_ADDRESS": ("`sleddog data prepare`", "Ray cluster to prepare data on; by default a local one."),
    "MLFLOW_TRACKING_URI": ("cluster", "MLflow's server, where the spec's `track.mlflow` names none."),
}
"""Variable, who reads it, what it says."""


def option_variables() -> dict[str, tuple[str, list[tuple[str, ...]]]]:
    """Of each variable that an option reads, what the option says, and the commands that have it."""
    found: dict[str, tuple[str, list[tuple[str, ...]]]] = {}
    for path, command in commands():
        for parameter in command.params:
            if parameter.envvar:
                found.setdefault(parameter.envvar, (parameter.help or "", []))[1].append(path)
    return found


def environment_page() -> list[str]:
    """Lines: one table."""
    rows = [
        (code(name), _readers(paths), prose(help_text))
        for name, (help_text, paths) in sorted(option_variables().items())
    ]
    rows += [(code(name), prose(reader), prose(meaning)) for name, (reader, meaning) in OTHERS.items()]
    return table(("variable", "read by", "meaning"), rows)


def _readers(paths: list[tuple[str, ...]]) -> str:
    if len(paths) > 4:
        return "every command that asks a service"
    return ", ".join(f"[{' '.join(path)}](#{target('cli', *path)})" for path in paths)
