"""The backend against real Ray."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.backends.local_ray import LocalRay
from service.backends.ray_jobs import RayJobs
from service.errors import BackendUnavailableError, ConflictError

pytestmark = pytest.mark.ray


@pytest.fixture
def backend(local_ray: LocalRay) -> Iterator[RayJobs]:
    """Drivers run a module that ends at once, whatever its arguments."""
    made = RayJobs(
        local_ray.dashboard_url,
        local_ray.token,
        python=sys.executable,
        modules={"job": "platform"},
        shares_filesystem=True,
    )
    with closing(made):
        yield made


def with_token(url: str, token: str) -> RayJobs:
    return RayJobs(url, token, python="python", modules={"job": "platform"}, shares_filesystem=True)


def eventually(condition: Callable[[], bool], timeout_s: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "not within the time allowed"
        time.sleep(0.05)
    return time.monotonic() - start


def test_submitting_twice_starts_one_driver(backend: RayJobs, tmp_path: Path) -> None:
    injected = tmp_path / "injected"
    for _ in range(3):
        backend.submit("twice-a1", "job", f"/tmp/run dir; touch {injected}", 1, "hash")
    eventually(lambda: (backend.state("twice-a1") or ("", ""))[0] in ("succeeded", "failed"), 60)
    with pytest.raises(ConflictError, match="another twice-a1"):
        backend.submit("twice-a1", "job", "/tmp/run", 1, "other hash")
    assert not injected.exists(), "the run's URL is one argument, not shell"


def test_unknown_attempts_are_unknown(backend: RayJobs) -> None:
    assert backend.state("never-a1") is None
    assert backend.logs("never-a1") == ""
    backend.stop("never-a1")


def test_ray_is_closed_to_others(backend: RayJobs, local_ray: LocalRay) -> None:
    backend.require_authentication()
    with (
        closing(with_token(local_ray.dashboard_url, "f" * 64)) as stranger,
        pytest.raises(BackendUnavailableError, match="403"),
    ):
        stranger.ping()
    assert local_ray._token_path.stat().st_mode & 0o077 == 0


def test_an_open_cluster_is_refused() -> None:
    class Open(BaseHTTPRequestHandler):
        """A Jobs API without authentication: a stand-in, since no test should open a real one."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Open) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with (
            closing(with_token(f"http://127.0.0.1:{server.server_port}", "t")) as cluster,
            pytest.raises(BackendUnavailableError, match="accepts jobs without authentication"),
        ):
            cluster.require_authentication()
        thread.join()


def test_a_cluster_that_is_away_is_said_to_be() -> None:
    with closing(with_token("http://127.0.0.1:9", "t")) as away:
        for ask in (away.ping, away.require_authentication, lambda: away.state("x-a1")):
            with pytest.raises(BackendUnavailableError, match="does not answer"):
                ask()
