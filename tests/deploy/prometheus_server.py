"""Prometheus and its tool, for tests: the programs that `make system-packages` unpacks."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

START_TIMEOUT_S = 30.0


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `make system-packages` installs it")
    return found


def promtool(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [program("promtool"), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


class PrometheusServer:
    """A running one.

    Args:
        url: of its HTTP API.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10.0)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an error of Prometheus is an `AssertionError` with its words."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.is_success, answer.text
        return answer.json()["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Series of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def await_ready(self) -> None:
        """Wait until it answers: its port opens late, and it says 503 until it has read its storage."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if self._http.get("/-/ready").is_success:
                    return
            time.sleep(0.1)
        raise AssertionError(f"Prometheus is not ready after {START_TIMEOUT_S:.0f} s")

    def await_samples(self, series: str, number: int) -> None:
        """Wait until a series has so many samples."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            counted = self.query(f"count_over_time({series}[1h])")
            if counted and float(counted[0]["value"][1]) >= number:
                return
            time.sleep(0.2)
        raise AssertionError(f"{series} has no {number} samples after {START_TIMEOUT_S:.0f} s")

    def await_rules(self) -> list[dict[str, Any]]:
        """Its rules, when each has been evaluated."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            rules = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
            if all(rule["health"] != "unknown" for rule in rules):
                return rules
            time.sleep(0.2)
        raise AssertionError(f"rules are not evaluated after {START_TIMEOUT_S:.0f} s")


@contextmanager
def prometheus_scraping(configuration: Path, target: str, directory: Path) -> Iterator[PrometheusServer]:
    """A Prometheus on loopback with a configuration as shipped, but for the target and the intervals.

    Args:
        configuration: the file; its rules lie beside it.
        target: host and port of the control plane.
        directory: for its data.
    """
    document = yaml.safe_load(configuration.read_text())
    document["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    document["rule_files"] = [str(configuration.parent / name) for name in document["rule_files"]]
    document["scrape_configs"] = [item for item in document["scrape_configs"] if item["job_name"] == "sleddog"]
    document["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(document))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [program("prometheus"), "--config.file=prometheus.yml", f"--web.listen-address={address}"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--storage.tsdb.path=tsdb"], cwd=directory, stdout=log, stderr=log, start_new_session=True
        )
    server = PrometheusServer(f"http://{address}")
    try:
        server.await_ready()
        yield server
    finally:
        server.close()
        process.terminate()
        process.wait(10)
