"""Every type of event with its data, from the list of types and from the docstring that describes them."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from scripts.reference.markdown import code, prose, target
from service.spec.event import Event, EventType

EVENT_TYPES: tuple[str, ...] = get_args(EventType)
_GUARDS = "ray_jobs.train.guards"
_ENTRY = re.compile(r"^ {4}([a-z_]+\.[a-z_]+): ")


def warning_kinds() -> tuple[str, ...]:
    """Those of the cluster, read from the module without its import, which needs PyTorch; and the control plane's."""
    found = find_spec(_GUARDS)
    assert found is not None, "it is a module of this project"
    assert found.origin is not None, "it is a file"
    for statement in ast.parse(Path(found.origin).read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "WarningKind":
            assert isinstance(statement.value, ast.Subscript), "it is a Literal"
            return (*ast.literal_eval(statement.value.slice), "eta_slipped")
    raise LookupError(f"{_GUARDS} has no WarningKind")


def described() -> dict[str, str]:
    """What the docstring of `Event` says of the data of each type."""
    entries: dict[str, str] = {}
    current = None
    for line in (inspect.getdoc(Event) or "").splitlines():
        if found := _ENTRY.match(line):
            current = found[1]
            entries[current] = line[found.end() :]
        elif current is not None and line.startswith(" " * 8):
            entries[current] += " " + line.strip()
    return entries


def events_page() -> list[str]:
    """Lines: a section of each type, in the order of a run, then the kinds of warnings."""
    texts = described()
    lines: list[str] = []
    for name in EVENT_TYPES:
        lines += [f"({target('event', name)})=", f"## {name}", "", prose(texts.get(name, "No data.")), ""]
    lines += ["## Kinds of warnings", "", "`kind` of a `job.warning` is one of:", ""]
    return [*lines, *(f"- {code(kind)}" for kind in warning_kinds()), ""]
