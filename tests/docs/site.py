"""The built site as a browser meets it: what each page links to, what it loads, what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache, cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

from tests.docs.pages import ROOT

STRICT = ("--fresh-env", "--nitpicky", "--fail-on-warning", "--keep-going")
_LOADED_FROM_CSS = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")
_LINKS_THAT_LOAD = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload", "manifest"}


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "--jobs",
        "auto",
        *STRICT,
        "-b",
        "html",
        str(source),
        str(target),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)


class Site:
    """A site that was built.

    Args:
        root: its directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def pages(self) -> dict[str, BeautifulSoup]:
        """Pages by their path."""
        return {
            str(path.relative_to(self.root)): BeautifulSoup(path.read_text(), "html.parser")
            for path in sorted(self.root.rglob("*.html"))
        }

    def broken_links(self) -> list[str]:
        """Links, images and scripts of the site's own that lead to no file, or to no place in it."""
        names = {page: {str(tag["id"]) for tag in soup.find_all(id=True)} for page, soup in self.pages.items()}
        return [
            f"{page}: {target}"
            for page, soup in self.pages.items()
            for tag in soup.find_all(["a", "img", "script", "link"])
            if (target := str(tag.get("href") or tag.get("src") or "")) and self._is_broken(page, target, names)
        ]

    def _is_broken(self, page: str, target: str, names: dict[str, set[str]]) -> bool:
        scheme, host, path, _, fragment = urlsplit(target)
        if scheme or host:
            return False
        file = (self.root / page).parent / unquote(path) if path else self.root / page
        if not file.resolve().is_file():
            return True
        within = names.get(str(file.resolve().relative_to(self.root.resolve())))
        return bool(fragment) and within is not None and unquote(fragment) not in within

    def foreign(self) -> list[str]:
        """What pages and their style sheets would load from other hosts; links to them load nothing."""
        found = []
        for page, soup in self.pages.items():
            for tag in soup.find_all(True):
                found += [f"{page}: {target}" for target in _loaded(tag) if _is_foreign(target)]
        for sheet in self.root.rglob("*.css"):
            found += [f"{sheet.name}: {target}" for target in _LOADED_FROM_CSS.findall(sheet.read_text())]
        return found

    def section(self, page: str, name: str) -> str:
        """Text of a section, by the name that it is linked to by; empty where there is none."""
        found = self._sections(page).get(name)
        return found.get_text(" ") if found else ""

    def code(self, page: str, name: str | None = None) -> set[str]:
        """What stands as code on a page, or in one of its sections."""
        found = self._sections(page).get(name) if name else self.pages[page]
        return {tag.get_text() for tag in found.find_all("code")} if found else set()

    @cache  # noqa: B019  a test session has one site
    def _sections(self, page: str) -> dict[str, Tag]:
        """Sections by each name within them; the innermost, where they are nested."""
        named = self.pages[page].find_all(id=True)
        sections = {str(tag["id"]): tag if tag.name == "section" else tag.find_parent("section") for tag in named}
        return {name: section for name, section in sections.items() if section is not None}


def _loaded(tag: Tag) -> list[str]:
    if tag.name == "a":
        return []
    if tag.name == "link":
        return [str(tag.get("href", ""))] if _LINKS_THAT_LOAD & set(tag.get("rel") or ()) else []
    sets = [part.split()[0] for part in str(tag.get("srcset", "")).split(",") if part.split()]
    styles = _LOADED_FROM_CSS.findall(str(tag.get("style", "")) + (tag.get_text() if tag.name == "style" else ""))
    return [str(tag.get(attribute, "")) for attribute in ("src", "data", "poster")] + sets + styles


def _is_foreign(target: str) -> bool:
    return target.startswith(("http://", "https://", "//"))
