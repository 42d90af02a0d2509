"""Ray on the hosts of a local cluster: a head that runs drivers, and workers of one CPU each.

A host is a real one for Ray: `ray start` in its namespace, with its address, its own directory of sockets and logs,
and a small object store, since all share one machine's memory. Everything is started with the cluster's token.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from network import Network, NetworkError

HEAD = "head"
_DASHBOARD_PORT, _GCS_PORT = 8265, 6379
_OBJECT_STORE_BYTES = 128 * 2**20
_START_TIMEOUT_S = 300.0
_MAX_STARTS = 3
_LOOK_S = 1.0
"""Between two looks at what starts: a look searches all of the machine's processes, which then wait."""
_TRAINING_WORKER = b"ray::RayTrainWorker"

_PATIENCE = {"RAY_raylet_start_wait_time_s": "120"}
"""For a machine that is busy with something else: four hosts start at once."""
_NOTICE_LOSS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""A host that is silent counts as lost after some 12 s; Ray's own settings take a minute or so."""


class Hosts:
    """The hosts of one cluster.

    Args:
        name: of the cluster.
        network: its network.
    """

    def __init__(self, name: str, network: Network) -> None:
        self._network = network
        # short, since Ray puts sockets below it and their paths may have 107 characters only
        self.directory = Path(tempfile.gettempdir()) / f"sd-{name}"

    @property
    def token_path(self) -> Path:
        """The file with the cluster's authentication token."""
        return self.directory / "token"

    @property
    def dashboard_url(self) -> str:
        """Where the Jobs API answers."""
        return f"http://{self._network.address(HEAD)}:{_DASHBOARD_PORT}"

    def make_directory(self) -> None:
        """With a token of its own; what there is stays."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if not self.token_path.exists():
            self.token_path.touch(mode=0o600)
            self.token_path.write_text(secrets.token_hex(32))

    def remove_directory(self) -> None:
        """With all that Ray left; safe to repeat."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def start_ray(self, host: str) -> None:
        """Start Ray on a host where nothing runs, without waiting for it."""
        scratch = self.directory / host
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with self._log(host).open("wb") as log:
            subprocess.Popen(  # noqa: S603  our own command line
                self._network.boot(host, self._ray_start(host, scratch)),
                env=self._environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_ray(self, hosts: list[str]) -> None:
        """Wait until the head answers and has these hosts, itself among them or not.

        Ray gives up by itself on a machine that is too busy, and is started again, as on any supervised host.

        Raises:
            NetworkError: not in time, or Ray ends again and again.
        """
        deadline, num_starts = time.monotonic() + _START_TIMEOUT_S, Counter(hosts)
        while not set(hosts) <= set(self.nodes() or {}):
            for host in hosts:
                if not self._network.processes(host):
                    if num_starts[host] == _MAX_STARTS:
                        raise NetworkError(f"Ray ends on {host}:\n{self._log(host).read_text()[-2000:]}")
                    num_starts[host] += 1
                    self.start_ray(host)
            if time.monotonic() > deadline:
                raise NetworkError(f"Ray is not up on {', '.join(hosts)}; its logs lie in {self.directory}")
            time.sleep(_LOOK_S)

    def nodes(self) -> dict[str, dict[str, Any]] | None:
        """What the head says of each host that it believes to be alive; None when it does not answer."""
        token = self.token_path.read_text()
        try:
            answer = httpx.get(
                f"{self.dashboard_url}/api/v0/nodes",
                headers={"Authorization": f"Bearer {token}"},
                params={"detail": "true"},
                timeout=5.0,
                trust_env=False,
            )
        except httpx.HTTPError:
            return None
        if not answer.is_success:
            return None
        hosts = {self._network.address(host): host for host in self._network.hosts()}
        nodes = answer.json()["data"]["result"]["result"]
        return {hosts[node["node_ip"]]: node for node in nodes if node["state"] == "ALIVE"}

    def num_training_workers(self, host: str) -> int:
        """Processes on a host that train."""
        return sum(_command_line(process).startswith(_TRAINING_WORKER) for process in self._network.processes(host))

    def _log(self, host: str) -> Path:
        return self.directory / f"{host}.log"

    def _ray_start(self, host: str, scratch: Path) -> list[str]:
        address = self._network.address(host)
        if host == HEAD:
            role = ["--head", f"--port={_GCS_PORT}", "--dashboard-host=0.0.0.0", f"--dashboard-port={_DASHBOARD_PORT}"]
        else:
            role = [f"--address={self._network.address(HEAD)}:{_GCS_PORT}"]
        return [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            *role,
            f"--node-ip-address={address}",
            f"--num-cpus={0 if host == HEAD else 1}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={scratch}",
        ]

    def _environment(self) -> dict[str, str]:
        """Of Ray and, through it, of drivers and workers: this interpreter is their `python`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
        return inherited | {
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            **_PATIENCE,
            **_NOTICE_LOSS,
        }


def _command_line(process: int) -> bytes:
    """Empty once it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
