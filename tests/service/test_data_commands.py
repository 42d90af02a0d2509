"""`sleddog data` as a process that starts another: exit codes, signals, and what it says where that cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import data_commands
from service.cli import app

CHILD = """
import signal, sys, time

got = []
def note(number, frame):
    got.append(number)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
if sys.argv[1:] == ["inspect", "--wait", "a b"]:
    print("ready", flush=True)
    while not got:
        time.sleep(0.01)
    time.sleep(0.3)  # for a second one
    print("got", *got)
    sys.exit(40 + got[0])
elif sys.argv[1:] == ["inspect", "--killed"]:
    signal.raise_signal(signal.SIGKILL)
sys.exit(7)
"""


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line, with another process in place of the real one."""
    (directory / "child_of_test.py").write_text(CHILD)
    code = "from service import data_commands, cli; data_commands.DATA_MODULE = 'child_of_test'; cli.app()"
    command = [sys.executable, "-c", code, "data", *arguments]
    paths = f"{Path(data_commands.__file__).parents[1]}:{directory}"
    environment = {"PYTHONPATH": paths, "PATH": "", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_once_and_its_answer_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path, "inspect", "--wait", "a b") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "arguments arrive as they are"
        os.killpg(process.pid, number)  # as a terminal does
        assert process.stdout.read() == f"got {int(number)}\n"
        assert process.wait() == 40 + number


def test_the_exit_code_is_the_childs(tmp_path: Path) -> None:
    for arguments, code in ((("report",), 7), (("inspect", "--killed"), 128 + signal.SIGKILL)):
        with start(tmp_path, *arguments) as process:
            assert process.wait() == code


def test_where_the_cluster_extra_is_not_installed_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_commands, "_NEEDED", ("json", "no_such_package"))
    result = CliRunner().invoke(app, ["data", "inspect", "somewhere"])
    assert result.exit_code == 1
    assert result.output == "sleddog: no no_such_package here; this command needs `pip install 'sleddog[cluster]'`\n"


def test_a_spec_at_fault_ends_with_2_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_commands, "_run", lambda *_: pytest.fail("started"))
    (tmp_path / "job.yaml").write_text("name: x\n")
    for name, reason in (("none.yaml", "none.yaml"), ("job.yaml", "model: Field required")):
        result = CliRunner().invoke(app, ["data", "prepare", str(tmp_path / name), "--output", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert reason in result.output
    assert not (tmp_path / "out").exists()
