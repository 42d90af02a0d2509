"""How the site is built from these pages: `make docs`, offline, every warning an error.

The reference is filled in while the pages are read (`scripts/reference`), so it is that of the code beside it.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "Sleddog"
copyright = "the Sleddog project"  # noqa: A001  the name that Sphinx looks for
version = release = version_of("sleddog")

extensions = ["myst_parser"]
myst_heading_anchors = 4
nitpicky = True
smartquotes = False
exclude_patterns = ["conf.py"]
highlight_language = "text"

html_theme = "furo"
html_title = f"Sleddog {version}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["tables.css"]


def setup(app: Sphinx) -> None:
    """Fill the pages of the reference."""

    def fill_page(_app: Sphinx, _page: str, source: list[str]) -> None:
        if "<!-- " in source[0]:
            logging.getLogger("alembic").setLevel(
                logging.WARNING
            )  # it tells of its plugins, to a log that Sphinx prints
            from scripts.reference.pages import fill

            source[0] = fill(source[0])

    app.connect("source-read", fill_page)
