"""The site builds without a warning, leads nowhere wrong, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, anchors, links, name_of, page_paths
from tests.docs.site import STRICT, Site, build

PAGE = '<html><head>{head}</head><body><p id="there">x</p>{body}</body></html>'


def test_make_builds_it_as_strictly() -> None:
    recipe = re.search(r"^docs:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert set(STRICT) <= set(recipe[1].split())


FAULTS = {
    "[a](nowhere.md)": "'nowhere.md'",
    "[a](index.md#no-heading)": "no-heading",
    "{py:class}`no.Such`": "py:class reference target not found: no.Such",
    "![a](no.png)": "no.png",
    "```{nonsense}\n```": "Unknown directive type: 'nonsense'",
}


def test_each_fault_of_a_page_is_told_and_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text((ROOT / "docs/conf.py").read_text().replace('["static"]', "[]"))
    (tmp_path / "index.md").write_text("# Page\n\n" + "\n\n".join(FAULTS) + "\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert [warning for warning in FAULTS.values() if warning not in done.stderr] == []
    assert done.stderr.count("WARNING") == len(FAULTS)


def test_no_link_of_the_site_is_broken(site: Site) -> None:
    assert site.broken_links() == []
    assert len(site.pages) > 60


def test_the_site_loads_nothing_from_elsewhere(site: Site) -> None:
    assert site.foreign() == []


@pytest.mark.parametrize(
    ("body", "is_broken"),
    [
        ('<a href="#there">', False),
        ('<a href="other.html#there">', False),
        ('<a href="https://elsewhere.example/">', False),
        ('<a href="#nothing">', True),
        ('<a href="other.html#nothing">', True),
        ('<a href="none.html">', True),
        ('<img src="none.png">', True),
    ],
)
def test_a_broken_link_is_seen(body: str, is_broken: bool, tmp_path: Path) -> None:
    for name in ("page", "other"):
        (tmp_path / f"{name}.html").write_text(PAGE.format(head="", body=body if name == "page" else ""))
    assert bool(Site(tmp_path).broken_links()) == is_broken


@pytest.mark.parametrize(
    ("head", "is_foreign"),
    [
        ('<link rel="stylesheet" href="site.css"><a href="https://elsewhere.example/">', False),
        ('<link rel="canonical" href="https://elsewhere.example/">', False),
        ('<link rel="stylesheet" href="https://fonts.example/a.css">', True),
        ('<script src="//cdn.example/a.js"></script>', True),
        ('<img srcset="a.png 1x, https://cdn.example/a.png 2x">', True),
        ('<p style="background: url(https://cdn.example/a.png)">', True),
        ("<style>@import 'https://fonts.example/a.css';</style>", True),
    ],
)
def test_what_is_loaded_from_elsewhere_is_seen(head: str, is_foreign: bool, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE.format(head=head, body=""))
    assert bool(Site(tmp_path).foreign()) == is_foreign
    (tmp_path / "site.css").write_text("a { background: url('https://cdn.example/a.png') }")
    assert len(Site(tmp_path).foreign()) == is_foreign + 1


def test_no_link_of_a_page_in_the_repository_is_broken() -> None:
    broken = [
        f"{name_of(path)}: {link}"
        for path in page_paths()
        for link in links(path.read_text())
        if repository_fault(path, link)
    ]
    assert broken == []


def repository_fault(page: Path, link: str) -> bool:
    """Whether a link leads nowhere for who reads the page where the repository lies."""
    path, _, fragment = link.partition("#")
    if re.match(r"[a-z]+:", link):
        return False
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return True
    return bool(fragment) and target.suffix == ".md" and fragment not in anchors(target.read_text())


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("README.md", False),
        ("docs/concepts.md#where-to-find-what", False),
        ("#try-it", False),
        ("https://elsewhere.example/", False),
        ("docs/nowhere.md", True),
        ("docs/concepts.md#where", True),
        ("#nothing", True),
    ],
)
def test_a_broken_link_in_the_repository_is_seen(link: str, is_broken: bool) -> None:
    assert repository_fault(ROOT / "README.md", link) == is_broken
