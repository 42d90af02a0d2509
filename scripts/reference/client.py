"""The calls of the Python client with their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from scripts.reference.markdown import code, prose, target
from service.client.client import Client

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$", re.MULTILINE)
_ANNOTATION = re.compile(r"(: |-> )'([^']*)'")
"""As `inspect` shows one that is kept as text."""


def calls() -> Iterator[tuple[str, Any]]:
    """Each call as it is written, `client.jobs.create`, and the function."""
    with Client("http://127.0.0.1:8700", "none") as client:
        yield from _methods("client", client)
        for name, part in sorted(vars(client).items()):
            if not name.startswith("_"):
                yield from _methods(f"client.{name}", part)


def _methods(prefix: str, holder: object) -> Iterator[tuple[str, Any]]:
    for name, method in inspect.getmembers(type(holder), inspect.isfunction):
        if not name.startswith("_"):
            yield f"{prefix}.{name}", method


def client_page() -> list[str]:
    """Lines: a section of each call."""
    lines: list[str] = []
    for name, method in calls():
        summary, *_ = _SECTION.split(inspect.getdoc(method) or "")
        lines += [f"({target(name)})=", f"## {name}", "", "```python", _signature(name, method), "```", ""]
        lines += [prose(paragraph) + "\n" for paragraph in summary.split("\n\n") if paragraph.strip()]
        lines += _arguments(inspect.getdoc(method) or "")
    return lines


def _signature(name: str, method: Any) -> str:
    signature = inspect.signature(method)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    return name + _ANNOTATION.sub(r"\1\2", str(signature.replace(parameters=own)))


def _arguments(docstring: str) -> list[str]:
    parts = _SECTION.split(docstring)
    lines: list[str] = []
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        for entry in re.split(r"\n {4}(?=\S)", text.rstrip()):
            name, is_named, meaning = entry.strip().partition(": ")
            if title in ("Args", "Raises") and is_named:
                verb = "" if title == "Args" else "raises "
                lines.append(f"- {verb}{code(name)}: {prose(meaning)}")
            elif entry.strip():
                lines.append(f"- {title.lower()}: {prose(entry)}")
    return [*lines, ""] if lines else []
