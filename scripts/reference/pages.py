"""Puts what a page does not hold itself in the place of its marker, while the site is built.

The pages of `docs/reference` are kept with their introductions, so that links lead to something in the repository, too;
what follows from the code is not kept, and cannot be out of date. Such a page says `<!-- generated: specs -->`. The
files that a repository has at its root are pages as well: `<!-- file: CONTRIBUTING.md -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.reference.client import client_page
from scripts.reference.commands import commands_page
from scripts.reference.environment import environment_page
from scripts.reference.errors import errors_page
from scripts.reference.events import events_page
from scripts.reference.rest import rest_page
from scripts.reference.specs import specs_page

PAGES: Mapping[str, Callable[[], list[str]]] = {
    "specs": specs_page,
    "rest": rest_page,
    "commands": commands_page,
    "client": client_page,
    "events": events_page,
    "errors": errors_page,
    "environment": environment_page,
}
ROOT = Path(__file__).parents[2]
_GENERATED = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)
_FILE = re.compile(r"^<!-- file: ([A-Z]+\.md) -->$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def fill(text: str) -> str:
    """A page with its markers filled.

    Raises:
        KeyError: a marker names nothing that is generated.
    """
    text = _FILE.sub(lambda marker: _from_root(marker[1]), text)
    return _GENERATED.sub(lambda marker: "\n".join(PAGES[marker[1]]()), text)


def _from_root(name: str) -> str:
    """A file of the root, its links as they are from `docs/project`."""
    return _LINK.sub(lambda link: f"]({_moved(link[1])})", (ROOT / name).read_text())


def _moved(link: str) -> str:
    if link.startswith("docs/"):
        return "../" + link.removeprefix("docs/")
    return link.lower() if (ROOT / "docs/project" / link.lower()).exists() else f"../../{link}"
