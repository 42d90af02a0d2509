"""Every type of event with its data, from the list of types and from the docstring that describes them."""

from __future__ import annotations

import inspect
import re
from typing import get_args

from scripts.reference.markdown import code, prose, target
from service.spec.event import Event, EventType, WarningKind

EVENT_TYPES: tuple[str, ...] = get_args(EventType)
_ENTRY = re.compile(r"^ {4}([a-z_]+\.[a-z_]+): ")


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
    return [*lines, *(f"- {code(kind)}" for kind in get_args(WarningKind)), ""]
