"""The pages as a reader meets them: blocks of code, code within the text, links, headings.

Pages are those of `docs/` and the Markdown files of the repository's root. They are parsed as CommonMark with tables,
as both the site and the place where the repository lies do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "sh", "console", "shell")
_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        place: page and line, for messages.
        language: the first word behind the fence; empty where the block is indented.
        marks: the words behind it: `run`, `other`, `file=NAME`.
        text: what is in it.
    """

    place: str
    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """Name of the file that the block is, where it says so."""
        return next((mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")), None)


def page_paths() -> list[Path]:
    """Of all pages."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path: Path) -> str:
    """Of a page, for messages: its path in the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _tokens(text: str) -> Iterator[Token]:
    for token in _PARSER.parse(text):
        yield token
        yield from token.children or ()


def blocks(text: str, name: str) -> list[Block]:
    """All blocks of code of a page, in order."""
    found = []
    for token in _PARSER.parse(text):
        if token.type in ("fence", "code_block"):
            language, *marks = token.info.split() or [""]
            line = (token.map or [0])[0] + 1
            found.append(Block(f"{name}:{line}", language, tuple(marks), token.content))
    return found


def all_blocks() -> list[Block]:
    """Of all pages."""
    return [block for path in page_paths() for block in blocks(path.read_text(), name_of(path))]


def code_spans(text: str) -> list[str]:
    """Code within the text of a page."""
    return [token.content for token in _tokens(text) if token.type == "code_inline"]


def links(text: str) -> list[str]:
    """Targets of a page's links and images."""
    targets = [token.attrs.get("href") or token.attrs.get("src") for token in _tokens(text)]
    return [str(target) for target in targets if target]


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as both GitHub and the site make them."""
    tokens = _PARSER.parse(text)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
