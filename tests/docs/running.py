"""Runs a page as its reader would: its blocks in order, against a service, in a directory with the files it speaks of.

Blocks marked `file=NAME` are written there first. Python blocks share their names; of earlier shell blocks the
exports and aliases hold on. The ids of a job and of a sweep that pages show stand for the reader's latest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

from service.client.client import Client
from tests.docs.pages import SHELLS, Block

JOB_ID, SWEEP_ID = "job-6b05eaf8-3d9d581d", "sweep-6b05eaf8-3d9d581d"
ADDRESS = "http://127.0.0.1:8700"
_LASTING = re.compile(r"^(?:export|alias) .*$", re.MULTILINE)


class Reader:
    """Who follows one page.

    Args:
        url: of the service.
        directory: to work in; it is the process's own, and the client finds the service by its environment.
    """

    def __init__(self, url: str, directory: Path) -> None:
        self._url, self._directory = url, directory
        self._names: dict[str, Any] = {"__name__": "page"}
        self._lasting = ""

    def follow(self, blocks: list[Block]) -> int:
        """Write and run what is marked; gives how many blocks were run.

        Raises:
            AssertionError: a shell block failed; the message holds what it printed.
            Exception: what a Python block raised.
        """
        for block in blocks:
            if block.file:
                (self._directory / block.file).write_text(block.text)
        to_run = [block for block in blocks if "run" in block.marks]
        try:
            for block in to_run:
                self._run(block)
        finally:
            for value in self._names.values():
                if isinstance(value, Client | OpenAI):  # pages leave that to the end of the process
                    value.close()
        return len(to_run)

    def _run(self, block: Block) -> None:
        assert block.language in ("python", *SHELLS), f"{block.place}: a block of {block.language!r} cannot be run"
        text = self._theirs(block.text)
        if block.language == "python":
            exec(compile(text, block.place, "exec"), self._names)
        else:
            self._run_shell(block.place, text)

    def _theirs(self, text: str) -> str:
        for placeholder, kind in ((JOB_ID, "jobs"), (SWEEP_ID, "sweeps")):
            if placeholder in text:
                with Client() as client:
                    [latest] = getattr(client, kind).list(limit=1).data
                text = text.replace(placeholder, latest.id)
        return text.replace(ADDRESS, self._url)

    def _run_shell(self, place: str, text: str) -> None:
        commands = Path(sys.executable).parent
        done = subprocess.run(
            ["bash", "-O", "expand_aliases", "-euo", "pipefail", "-c", f"{self._lasting}\n{text}"],
            cwd=self._directory,
            env=os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{place}\n{done.stdout}\n{done.stderr}"
        self._lasting += "\n".join(_LASTING.findall(text)) + "\n"
