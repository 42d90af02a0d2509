"""The service goes away, and comes back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn
from playwright.sync_api import Page, expect

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.api.server import Server
from tests.service.web.conftest import Complaints
from tests.service.web.story import Cluster, step_events


@contextmanager
def served(parts: ControlPlane, port: int) -> Iterator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = Server(uvicorn.Config(create_app(parts), lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
        return number


@pytest.fixture
def url(port: int) -> str:
    """Of a service that each test starts itself."""
    return f"http://127.0.0.1:{port}"


def fresh(parts: ControlPlane) -> ControlPlane:
    """The parts of the next process: the same store, streams of its own."""
    return replace(parts)


def test_a_page_outlasts_its_service(
    signed_in: Page, port: int, parts: ControlPlane, cluster: Cluster, complaints: Complaints
) -> None:
    complaints.expected = ("net::ERR_",)
    with served(parts, port):
        job = cluster.running_job(60)
        signed_in.goto(f"/#/jobs/{job.id}")
        expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 60")).to_be_visible()
    expect(signed_in.get_by_text("The service does not answer")).to_be_visible()
    expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 60")).to_be_visible()
    cluster.tell(job, step_events(61, 70))
    with served(fresh(parts), port):
        expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 70")).to_be_visible()
        expect(signed_in.get_by_text("The service does not answer")).to_have_count(0)


def test_a_key_that_is_no_longer_valid_is_asked_for_again(
    signed_in: Page, port: int, parts: ControlPlane, cluster: Cluster, complaints: Complaints
) -> None:
    complaints.expected = ("401",)
    with served(parts, port):
        cluster.running_job()
        signed_in.goto("/")
        expect(signed_in.get_by_role("link", name="quickstart")).to_be_visible()
        signed_in.evaluate("sessionStorage.setItem('sleddog-api-key', 'sd-old')")
        expect(signed_in.get_by_label("Key", exact=True)).to_be_visible()
        assert signed_in.evaluate("sessionStorage.length") == 0


def test_a_hidden_tab_holds_no_connection(signed_in: Page, port: int, parts: ControlPlane, cluster: Cluster) -> None:
    with served(parts, port):
        job = cluster.running_job(60)
        signed_in.goto(f"/#/jobs/{job.id}")
        expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 60")).to_be_visible()
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
        tell = "; document.dispatchEvent(new Event('visibilitychange'))"
        with signed_in.expect_event("requestfailed", lambda request: "events:stream" in request.url):
            signed_in.evaluate(hide % "true" + tell)
        cluster.tell(job, step_events(61, 64))
        signed_in.wait_for_timeout(600)
        expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 60")).to_be_visible()
        signed_in.evaluate(hide % "false" + tell)
        expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 64")).to_be_visible()
