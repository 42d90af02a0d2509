"""Running Python programs that a model wrote: bubblewrap around them, limits within, a clock outside.

A program has namespaces of its own (no network, no process but its own, no other user), sees Python's standard library
and the C libraries, all read-only, and writes to a small scratch in memory, which goes with it. The limits are set
inside, hard, before the program is read: processes are then counted in its namespace alone (Linux 5.14), and not among
the worker's own. What it leaves running dies with its namespace.

Root is exempt from the limit of processes, also in a user namespace. So a worker that runs as root first builds the
view of the files, which may lie where only root can go, then changes to an unprivileged user, and only then makes the
sandbox.

Without bubblewrap, or where the kernel forbids it, nothing is run at all. A program can make itself count as passed if
it is out to (it shares its process with its tests, as in the published harness), but not by leaving early.

Rejected: a container for each program needs a daemon; seccomp or limits alone leave the file system open.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from service.errors import SandboxUnavailableError

MAX_PROCESSES = 6
"""The program's own, the sandbox's, and four more; threads count too."""
SCRATCH_BYTES = 16 * 2**20
MAX_OUTPUT_BYTES = 64 * 2**10
_PYTHON = "/python/bin/python3"
_VIEW = "--die-with-parent --unshare-pid --unshare-net --unshare-ipc"
_AS_NOBODY = "/bin/setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs"
_ISOLATION = (
    "--unshare-all --unshare-user --disable-userns --die-with-parent --new-session --cap-drop ALL --clearenv "
    "--setenv LD_LIBRARY_PATH /python/lib --setenv HOME /tmp --setenv PYTHONHASHSEED 0"
)
_SCRATCH = f"--size 4096 --tmpfs /proc --remount-ro /proc --size {SCRATCH_BYTES} --perms 0700 --tmpfs /tmp --chdir /tmp"
_DETAIL_CHARS = 200
_LAUNCHER = """
import os, resource, sys
seconds, memory, processes, file_bytes = map(int, sys.argv[1:])
for limit, value in (
    (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_NPROC, processes),
    (resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(limit, (value, value))
mark, _, program = sys.stdin.buffer.read().partition(b"\\n")
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
sys.stdout.flush()
os.write(1, mark)
os._exit(0)
"""
"""The mark, which only the parent knows, says that the program came to its end."""

Ending = Literal["passed", "failed", "timed_out", "too_much_output"]


@dataclass(frozen=True)
class ProgramEnd:
    """How a program ended.

    Attributes:
        ending: `passed` when it ran to its end without an exception.
        detail: the last line that it wrote.
    """

    ending: Ending
    detail: str


class Sandbox:
    """Runs one program after another, any number at a time.

    Args:
        timeout_s: seconds by the clock; the same, rounded up, of processor time.
        memory_bytes: address space of each process.

    Raises:
        SandboxUnavailableError: there is no bubblewrap, or it cannot isolate here.
    """

    def __init__(self, timeout_s: float = 10, memory_bytes: int = 2**30) -> None:
        self._timeout_s = timeout_s
        limits = (math.ceil(timeout_s), memory_bytes, MAX_PROCESSES, SCRATCH_BYTES)
        self._command = [*_isolation(), _PYTHON, "-I", "-S", "-c", _LAUNCHER, *map(str, limits)]
        probe = self.run("")
        if probe.ending != "passed":
            raise SandboxUnavailableError(
                f"bubblewrap cannot isolate programs here, so none is run ({probe.ending}: {probe.detail}); it needs "
                "user namespaces, which some kernels and containers forbid"
            )

    def run(self, program: str) -> ProgramEnd:
        """Run a program's text to its end, or to that of its time.

        Returns:
            How it ended; no process of it is left.
        """
        mark = secrets.token_hex(16).encode()
        process = subprocess.Popen(  # noqa: S603  this is what the sandbox is for
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={}
        )
        deadline = time.monotonic() + self._timeout_s
        try:
            written, ending = _converse(process, mark + b"\n" + program.encode("utf-8", "replace"), deadline)
            if ending is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            process.kill()  # and with it, as they die with their parent, all that it began
            process.wait()
            assert process.stdout is not None
            with process.stdout:
                while process.stdout.read(MAX_OUTPUT_BYTES):
                    pass  # the end of the output is the end of the last process
        if ending is None:
            ending = "passed" if written.endswith(mark) else "failed"
        lines = written.removesuffix(mark).decode("utf-8", "replace").strip().splitlines()
        return ProgramEnd(ending, lines[-1][:_DETAIL_CHARS] if lines else "")


def _converse(process: subprocess.Popen[bytes], text: bytes, deadline: float) -> tuple[bytes, Ending | None]:
    """Hand the text in and take the output; None as the ending when it ended by itself."""
    assert process.stdin is not None
    assert process.stdout is not None
    written = b""
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return written, "timed_out"
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    text = _hand_in(process, text)
                    if not text:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                elif part := os.read(process.stdout.fileno(), MAX_OUTPUT_BYTES):
                    written += part
                    if len(written) > MAX_OUTPUT_BYTES:
                        return written[:MAX_OUTPUT_BYTES], "too_much_output"
                else:
                    selector.unregister(process.stdout)
                    return written, None
    return written, None


def _hand_in(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What is left of the text; nothing when nobody reads it."""
    assert process.stdin is not None
    try:
        return text[os.write(process.stdin.fileno(), text) :]
    except BrokenPipeError:
        return b""


def _isolation() -> list[str]:
    """The command that a program's own command is appended to."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxUnavailableError(
            "there is no bubblewrap (bwrap) on this node, so no generated code is run; install it, on Debian by "
            "`apt-get install bubblewrap`"
        )
    if os.geteuid() != 0:
        return [bubblewrap, *_ISOLATION.split(), *_files(), "--remount-ro", "/", *_SCRATCH.split(), "--"]
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailableError("root needs `setpriv`, of util-linux, to run generated code as nobody")
    programs = ["--ro-bind", bubblewrap, "/bin/bwrap", "--ro-bind", setpriv, "/bin/setpriv"]
    view = [bubblewrap, *_VIEW.split(), *_files(), *programs, "--proc", "/proc", "--remount-ro", "/", "--"]
    within = ["/bin/bwrap", *_ISOLATION.split(), "--ro-bind", "/", "/", *_SCRATCH.split(), "--"]
    return [*view, *_AS_NOBODY.split(), *within]


def _files() -> list[str]:
    """All that Python needs, and no more: itself, its standard library, the C libraries, the null device."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    libraries = (f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/lib64", "/usr/lib64")
    binds = [(path, path) for path in libraries if os.path.isdir(path)]
    library = f"/python/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    standard_library = sysconfig.get_path("stdlib")
    binds.append((os.path.realpath(sys._base_executable), _PYTHON))  # type: ignore[attr-defined]  # noqa: SLF001
    binds.append((standard_library, library))
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        name = sysconfig.get_config_var("INSTSONAME")
        binds.append((f"{sysconfig.get_config_var('LIBDIR')}/{name}", f"/python/lib/{name}"))
    directories = {parent for _, target in binds for parent in _parents(target)} | {"/bin", "/dev", "/proc", "/tmp"}  # noqa: S108
    options = [part for path in sorted(directories) for part in ("--perms", "0755", "--dir", path)]
    options += [part for source, target in binds for part in ("--ro-bind", source, target)]
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{standard_library}/{name}"):  # whatever is installed is nobody's business
            options += f"--size 4096 --tmpfs {library}/{name} --remount-ro {library}/{name}".split()
    return [*options, "--dev-bind", "/dev/null", "/dev/null"]


def _parents(path: str) -> Iterator[str]:
    while (path := os.path.dirname(path)) != "/":
        yield path
