"""The page in Chromium, against the real application on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright
from sqlalchemy import Engine

from service.api.dependencies import ControlPlane
from service.store.engine import open_engine
from tests.service.recording_backend import RecordingBackend
from tests.service.web.story import Cluster

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_MS = 20_000
"""On a machine that is busy with other tests."""
AXE = Path(__file__).parent / "vendor" / "axe.js"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for all; its loop of events ends with it, before tests elsewhere need one of their own."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: `make system-packages`, or CHROMIUM=/path/to/it")
    # root has no sandbox of users below it
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def cluster(parts: ControlPlane, backend: RecordingBackend) -> Cluster:
    return Cluster(parts, backend)


class Complaints:
    """What a page should never do: complain, fail, or ask anybody but its own origin."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.seen: list[str] = []
        self.expected: tuple[str, ...] = ()

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.seen.append(message.text)

    def ask(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "blob:", "data:")):
            self.seen.append(f"asked {request.url}")

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.seen if not any(part in text for part in self.expected)]


@pytest.fixture
def complaints(url: str) -> Complaints:
    return Complaints(url)


@pytest.fixture
def open_page(browser: Browser, url: str, complaints: Complaints) -> Iterator[Callable[..., Page]]:
    """Opens a page without a key, with options of a browser context; at the end none must have complained."""
    contexts: list[BrowserContext] = []

    def open_page(**options: Any) -> Page:
        defaults = {"viewport": {"width": 1360, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(base_url=url, **{**defaults, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page = context.new_page()
        page.on("console", complaints.hear)
        page.on("pageerror", lambda error: complaints.seen.append(str(error)))
        page.on("request", complaints.ask)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints.unexpected == [], "the page complained"


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


def give_key(page: Page, key: str) -> Page:
    """As if it had been entered in this tab."""
    name = "sleddog-api-key"
    page.add_init_script(f"sessionStorage.getItem('{name}') ?? sessionStorage.setItem('{name}', '{key}')")
    return page


@pytest.fixture
def signed_in(page: Page, key: str) -> Page:
    return give_key(page, key)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[Page, str], None]:
    """Takes a picture for people: `SLEDDOG_PICTURES` names the directory."""
    directory = Path(os.environ.get("SLEDDOG_PICTURES", tmp_path))

    def take(page: Page, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=directory / f"{name}.png", full_page=True)

    return take


@pytest.fixture
def engine(migrated: Path, tmp_path: Path) -> Iterator[Engine]:
    """SQLite alone: which database it is, the page cannot see."""
    shutil.copy(migrated, tmp_path / "test.db")
    engine = open_engine(f"sqlite:///{tmp_path / 'test.db'}")
    yield engine
    engine.dispose()
