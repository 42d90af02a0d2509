"""Text of the code as MyST Markdown: docstrings hold `code` and plain words, and nothing else of Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_CODE = re.compile(r"(`[^`]*`)")
_SPECIAL = re.compile(r"([\\*_\[\]{}$|])")


def prose(text: str) -> str:
    """A docstring as one line of Markdown: what stands between backticks is code, all else is taken literally."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(
        part.replace("|", r"\|") if part.startswith("`") else _SPECIAL.sub(r"\\\1", part).replace("<", "&lt;")
        for part in parts
    )


def code(value: object) -> str:
    """A value as inline code; what is no text, as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, and an empty one behind it; of one without rows none."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    if not body:
        return []
    return ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *body, ""]


def target(*names: Any) -> str:
    """Name that a heading can be linked to by: `[text](#name)`."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-") for name in names)
