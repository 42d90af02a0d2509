"""An embedded Ray head for one machine: started with the control plane, with token authentication.

The dashboard, and so the Jobs API, listens on loopback. Ray binds its other servers to all interfaces whatever it is
told, so the token is what guards them.

Everything that descends from the head is ended with it, and nothing else: its children by their parents, and by a mark
in the environment the processes that outlived theirs. (Some of Ray's own processes overwrite their environment with
their title, so the mark alone would miss them: they are found below a marked one.) The mark follows from the token's
path, so a head whose control plane was killed is ended by the next start. Other Ray clusters on the machine are left
alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil

from service.errors import BackendUnavailableError

_START_TIMEOUT_S = 90.0
_STOP_GRACE_S = 5.0
_MARK = "SLEDDOG_LOCAL_RAY"
_OBJECT_STORE_BYTES = 512 * 2**20


class LocalRay:
    """A Ray head of our own.

    Args:
        token_path: where to keep the authentication token, readable by the owner only; one live head a path.
        num_cpus: what Ray may hand out.
    """

    def __init__(self, token_path: Path, num_cpus: int) -> None:
        self.token = secrets.token_hex(32)
        self._token_path = token_path
        self._num_cpus = num_cpus
        self._mark = hashlib.sha256(str(token_path.resolve()).encode()).hexdigest()[:16]
        # short, since Ray puts sockets below it and their paths may have 107 characters only
        self._directory = Path(tempfile.gettempdir()) / f"sleddog-{self._mark[:8]}"
        self._dashboard_port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dashboard_url(self) -> str:
        """Where its Jobs API answers."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def start(self) -> None:
        """Start it and wait until it takes jobs.

        Raises:
            BackendUnavailableError: it ended, or did not answer in time.
        """
        _kill(self.processes())
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700)
        self._token_path.touch(mode=0o600)
        self._token_path.chmod(0o600)
        self._token_path.write_text(self.token)
        with (self._directory / "head.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own command line
                self._command(), env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._directory / "head.log").read_text(errors="replace")[-2000:]
                self.stop()
                raise BackendUnavailableError(f"the local Ray head did not start:\n{tail}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and all that descends from it; safe to repeat."""
        remaining = self.processes()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_GRACE_S)
        _kill({*remaining, *self.processes()})
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """All live processes that descend from this head, or from one that a killed control plane left."""
        ancestors = [process for process in psutil.process_iter() if self._is_marked(process)]
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                ancestors.append(psutil.Process(self._process.pid))
        found = set(ancestors)
        for ancestor in ancestors:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update(ancestor.children(recursive=True))
        return sorted(found, key=lambda process: process.pid)

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _command(self) -> list[str]:
        options = {
            "--node-ip-address": "127.0.0.1",
            "--port": _free_port(),
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": self._dashboard_port,
            "--dashboard-agent-listen-port": _free_port(),
            "--ray-client-server-port": _free_port(),
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--num-cpus": self._num_cpus,
            "--object-store-memory": _OBJECT_STORE_BYTES,
            "--temp-dir": self._directory / "ray",
        }
        ray = str(Path(sys.executable).parent / "ray")
        return [ray, "start", "--head", "--block", *(str(part) for option in options.items() for part in option)]

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
        return inherited | {
            _MARK: self._mark,
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_path.resolve()),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        }

    def _answers(self) -> bool:
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = httpx.get(f"{self.dashboard_url}/api/jobs/", headers=headers, timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.is_success


def _kill(processes: Iterable[psutil.Process]) -> None:
    remaining = [process for process in processes if process.is_running()]
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=_STOP_GRACE_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
