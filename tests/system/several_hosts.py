"""Somebody who follows `docs/guides/several-hosts.md`: a shell, the page's commands, and a clone that they find."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from service.client.client import Client

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/several-hosts.md"
TOOL = ROOT / "deploy/local-cluster/cluster.py"
NUM_STEPS = 150
BLOCK_TIMEOUT_S = 600.0


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=200, check=False)


class Shell:
    """A shell that the guide's commands are typed into; the first that fails ends it.

    Args:
        directory: where.
        environment: of the commands.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-em"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, commands: str) -> str:
        """Returns what they printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{commands}\necho '<done>'\n".encode())
        self._process.stdin.flush()
        printed, deadline = b"", time.monotonic() + BLOCK_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not printed.endswith(b"<done>\n"):
                assert selector.select(deadline - time.monotonic()), f"in time:\n{commands}\n{printed.decode()}"
                chunk = os.read(self._process.stdout.fileno(), 65536)
                assert chunk, f"failed:\n{commands}\n{printed.decode()}"
                printed += chunk
        return printed.decode().removesuffix("<done>\n")

    def close(self) -> None:
        """With what it started and did not end."""
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started)
        self._process.communicate()


@dataclass
class Reader:
    """Somebody who follows the guide.

    Attributes:
        shell: of theirs.
        blocks: commands that they have not given yet.
        directory: a clone of the repository, as far as the commands look.
        url: of the service that they start.
        cluster: name of theirs.
    """

    shell: Shell
    blocks: list[str]
    directory: Path
    url: str
    cluster: str

    def follow(self, last: str) -> str:
        """Give the next blocks, up to the one with this command in it; returns what that one printed."""
        while True:
            block = self.blocks.pop(0)
            printed = self.shell.run(block)
            if last in block:
                return printed

    def client(self) -> Client:
        return Client(self.url, (self.directory / ".sleddog/api-key").read_text())


def clone(directory: Path) -> None:
    """What the guide's commands find in a clone after `make install`; its job has fewer steps."""
    (directory / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "deploy/local-cluster", directory / "deploy/local-cluster")
    (directory / "examples").mkdir()
    shutil.copy(ROOT / "examples/make_quickstart_data.py", directory / "examples")
    job = directory / "deploy/local-cluster/job.yaml"
    document = yaml.safe_load(job.read_text())
    document["train"]["max_steps"] = NUM_STEPS
    job.write_text(yaml.safe_dump(document))


@contextmanager
def reading(directory: Path) -> Iterator[Reader]:
    """A reader, who leaves no cluster behind, however far they come."""
    clone(directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    name = f"t{os.getpid()}"
    blocks = [block.replace("8700", port) for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLEDDOG_"))}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shell = Shell(directory, inherited | {"SLEDDOG_CLUSTER": name, "PYTHONPATH": paths})
    try:
        yield Reader(shell, blocks, directory, f"http://127.0.0.1:{port}", name)
    finally:
        shell.close()
        tool("down", "--name", name)
