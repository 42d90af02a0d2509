"""`sleddog serve` as a process: it starts once a data directory, and however it ends, it leaves nothing running."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
START_TIMEOUT_S = 90.0


def command(data_dir: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "service.cli", "serve", "--data-dir", str(data_dir), "--port", str(port)]


@contextmanager
def serving(data_dir: Path) -> Iterator[psutil.Popen]:
    """A service that answers, with its local cluster; killed at the block's end if it still runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (data_dir / "serve.log").open("ab") as log:
        process = psutil.Popen(command(data_dir, port), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready(port):
            assert process.poll() is None, (data_dir / "serve.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_service_leaves_nothing_running_and_shares_its_data_directory_with_no_other(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        orphans = first.children(recursive=True)
        assert len(orphans) > 5, "the head and its helpers were seen"
        second = subprocess.run(command(tmp_path, 0), capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert "a service already runs on" in second.stderr
        first.kill()
        first.wait()
    with serving(tmp_path) as third:
        assert not [process for process in orphans if process.is_running()], "what a killed service left is ended"
        children = third.children(recursive=True)
        third.send_signal(signal.SIGTERM)
        assert third.wait(30) == 128 + signal.SIGTERM
        assert not psutil.wait_procs(children, timeout=0)[1]
