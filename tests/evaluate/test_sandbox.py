"""What generated code could try, in the real sandbox."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs.evaluate.sandbox import MAX_OUTPUT_BYTES, SCRATCH_BYTES, ProgramEnd, Sandbox
from service.errors import SandboxUnavailableError
from tests.evaluate.conftest import NEEDS_BUBBLEWRAP

TIMEOUT_S, SHORT_S = 10.0, 1.5
"""The latter for programs that are to reach it."""

pytestmark = NEEDS_BUBBLEWRAP


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(TIMEOUT_S)


@pytest.fixture(scope="module")
def hasty() -> Sandbox:
    return Sandbox(SHORT_S)


def failure(sandbox: Sandbox, program: str) -> str:
    end = sandbox.run(program)
    assert end.ending == "failed", end
    return end.detail


def test_a_program_that_comes_to_its_end_has_passed(sandbox: Sandbox) -> None:
    libraries = "bisect collections decimal fractions functools hashlib heapq itertools json math random re typing"
    assert sandbox.run(f"import {libraries.replace(' ', ', ')}\nprint('é' * 3)") == ProgramEnd("passed", "ééé")
    writes = "open('notes', 'w').write('x')\nimport os\nassert os.listdir('/tmp') == ['notes']"
    assert [sandbox.run(writes).ending for _ in range(2)] == ["passed", "passed"], "each has a scratch of its own"
    assert sandbox.run("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()").ending == "passed"


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(0)", ""),
        ("import os\nos._exit(0)", ""),
        ("raise BaseException('x')", "BaseException: x"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("import os\nos.close(1)", "OSError: [Errno 9] Bad file descriptor"),
        ("print('passed')\nraise SystemExit", "passed"),
        ("", None),
    ],
)
def test_one_that_ends_in_any_other_way_has_not(sandbox: Sandbox, program: str, detail: str | None) -> None:
    end = sandbox.run(program)
    assert end == (ProgramEnd("passed", "") if detail is None else ProgramEnd("failed", detail))


def test_an_endless_loop_is_stopped_by_the_clock(hasty: Sandbox) -> None:
    for program in (
        "while True: pass",
        "import time\ntime.sleep(99)",
        "9**9**9",
    ):
        start = time.monotonic()
        assert hasty.run(program).ending == "timed_out"
        assert time.monotonic() - start < SHORT_S + 2


def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "refused" in failure(sandbox, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    connect = "import socket\ns = socket.socket()\ns.settimeout(2)\ns.connect(('8.8.8.8', 53))"
    assert "Network is unreachable" in failure(sandbox, connect)
    assert "gaierror" in failure(sandbox, "import socket\nsocket.getaddrinfo('example.com', 80)")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/1/environ", "/proc/self/status", "/sys/class", "/dev/shm", "/root"]
)
def test_what_is_not_pythons_is_not_there(sandbox: Sandbox, path: str) -> None:
    assert "FileNotFoundError" in failure(sandbox, f"import os\nos.stat({path!r})")


def test_neither_the_project_nor_other_packages_can_be_read(sandbox: Sandbox) -> None:
    for path in (Path(__file__), Path(pytest.__file__)):
        assert "FileNotFoundError" in failure(sandbox, f"open({str(path)!r})")
    look = "import os\nfound = [f for _, _, files in os.walk('/') for f in files]\n"
    assert (
        sandbox.run(look + "assert 'os.py' in found and not {'sandbox.py', 'pytest.py'} & set(found)").ending
        == "passed"
    )


def test_the_environment_is_not_handed_in(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLED_KEY", "secret-7")
    known = {"PWD", "HOME", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "LC_CTYPE"}
    program = f"import os\nassert set(os.environ) <= {known}, os.environ"
    assert sandbox.run(program) == ProgramEnd("passed", "")


@pytest.mark.parametrize("path", ["/x", "/python/bin/x", "/python/lib/x", "/dev/x", "/proc/x", "/lib64/x", "/usr/x"])
def test_nothing_can_be_written_but_the_scratch(sandbox: Sandbox, path: str) -> None:
    detail = failure(sandbox, f"open({path!r}, 'w')")
    assert "Read-only file system" in detail or "PermissionError" in detail


def test_a_link_out_of_the_scratch_leads_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert "FileNotFoundError" in failure(
        sandbox, f"import os\nos.symlink({str(secret)!r}, 'link')\nopen('link').read()"
    )
    dots = "/".join([".."] * 12)
    failure(sandbox, f"import os\nos.symlink({dots + str(secret)!r}, 'link')\nopen('link', 'w').write('x')")
    assert secret.read_text() == "secret"


def test_memory_is_limited_in_processes_and_in_files(sandbox: Sandbox) -> None:
    assert failure(sandbox, "x = bytearray(10 * 2**30)") == "MemoryError"
    fill = f"for name in range(4):\n    open(str(name), 'wb').write(bytes({SCRATCH_BYTES // 2}))"
    assert "No space left on device" in failure(sandbox, fill)


def test_a_fork_bomb_finds_its_end(sandbox: Sandbox, hasty: Sandbox) -> None:
    bomb = (
        "import os, time\nchildren = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(99)\n"
    )
    bomb += "        children += 1\nexcept BlockingIOError:\n    assert children < 6, children\n    raise"
    assert "BlockingIOError" in failure(sandbox, bomb)
    assert hasty.run("import os\nwhile True: os.fork()").ending in ("failed", "timed_out")


def test_limits_cannot_be_raised_nor_namespaces_made(sandbox: Sandbox) -> None:
    for limit in ("RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE"):
        raising = f"import resource as r\nr.setrlimit(r.{limit}, (r.RLIM_INFINITY, r.RLIM_INFINITY))"
        assert "not allowed to raise maximum limit" in failure(sandbox, raising)
    for flag in ("0x10000000", "0x00020000", "0x40000000"):  # user, mount, network
        call = f"import ctypes, os\nassert ctypes.CDLL(None, use_errno=True).unshare({flag}) == 0, 'refused'"
        assert failure(sandbox, call) == "AssertionError: refused"


def test_output_is_limited(sandbox: Sandbox) -> None:
    end = sandbox.run("while True: print('x' * 999)")
    assert end.ending == "too_much_output"
    assert len(end.detail) <= 200
    assert sandbox.run(f"print('x' * {MAX_OUTPUT_BYTES - 100})").ending == "passed"


def test_its_parents_are_out_of_reach(sandbox: Sandbox) -> None:
    sandbox.run("import os, signal\nfor pid in range(1, 99999):\n    try: os.kill(pid, 9)\n    except OSError: pass")
    sandbox.run("import os\nos.kill(-1, 9)")
    assert psutil.Process().is_running()
    assert sandbox.run("").ending == "passed"


def test_a_daemon_dies_with_its_program(sandbox: Sandbox, hasty: Sandbox) -> None:
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    daemon += "        {}\n        time.sleep(99)\n    os._exit(0)\n"
    before = {process.pid for process in psutil.process_iter()}
    for closing in ("pass", "os.closerange(0, 99)"):
        start = time.monotonic()
        assert sandbox.run(daemon.format(closing)).ending == "passed"
        assert time.monotonic() - start < TIMEOUT_S
    assert hasty.run(daemon.format("pass") + "while True: pass").ending == "timed_out"
    left = [process for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert not [process for process in left if "/python/bin/python3" in (process.info["cmdline"] or [])]


def test_a_program_that_reads_nothing_or_is_long_does_no_harm(sandbox: Sandbox) -> None:
    assert sandbox.run("x = 0\n" * 10**5).ending == "passed"
    assert sandbox.run("import sys\nassert sys.stdin.read() == ''").ending == "passed"


def test_several_run_at_a_time(sandbox: Sandbox) -> None:
    ends: list[str] = []
    threads = [threading.Thread(target=lambda: ends.append(sandbox.run("print(1)").ending)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == ["passed"] * 4


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailableError, match=r"no bubblewrap .*apt-get install bubblewrap"):
        Sandbox()


def test_where_the_kernel_forbids_isolation_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without user namespaces, which is tried in one that has none left to give."""
    real = shutil.which("bwrap")
    assert real is not None
    run = subprocess.Popen

    def forbidden(command: list[str], **options: object) -> object:
        outer = [real, "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--"]
        return run([*outer, *command], **options)  # type: ignore[call-overload]

    monkeypatch.setattr("ray_jobs.evaluate.sandbox.subprocess.Popen", forbidden)
    with pytest.raises(SandboxUnavailableError, match="cannot isolate programs here, so none is run"):
        Sandbox()
