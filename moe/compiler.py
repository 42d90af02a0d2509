"""C++ kernels for this machine's processor: compiled at their first use, then kept.

A library is kept in the user's cache directory under the hash of all that it depends on, so a home directory that
unlike machines share is no trouble. Several processes may compile at once: each writes a file of its own and renames
it, and one that is killed leaves nothing that another would wait for. Standard library only, for light processes.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
COMPILE_TIMEOUT_S = 120

log = logging.getLogger(__name__)


def load_or_none(source: Path, instead: str, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The compiled library; where it cannot be had, None and a warning in the log.

    Args:
        source: a C++ file with `extern "C"` functions; what it includes of its own lies beside it.
        instead: for the warning: what is done without the library, and at what cost.
        flags: for the compiler, beside the usual.
    """
    try:
        return ctypes.CDLL(str(compiled(source, flags)))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("%s cannot be had; %s: %s", source, instead, reason)
        return None


def compiled(source: Path, flags: tuple[str, ...] = ()) -> Path:
    """The library's file, compiled now unless it was before.

    Raises:
        OSError: there is no compiler, or the cache directory cannot be written.
        RuntimeError: the user has no home directory, as in containers that run under any user's number.
        ValueError: `$CXX` has a quote that does not end.
        subprocess.SubprocessError: the compiler failed or took too long.
    """
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or shutil.which("clang++") or "g++")
    command = [*compiler, *FLAGS, *flags]
    path = cache_directory() / f"{source.stem}-{_identity(command, source)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            built = Path(directory) / path.name
            _run([*command, str(source), "-o", str(built)])
            built.replace(path)
    return path


def cache_directory() -> Path:
    """Where libraries are kept: `sleddog` below `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sleddog"


def _identity(command: list[str], source: Path) -> str:
    """Hash of source, the headers beside it, flags, compiler and processor."""
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*texts, " ".join(command), _run([*command, "--version"]), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Its name and abilities, which `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:  # no Linux
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=COMPILE_TIMEOUT_S).stdout  # noqa: S603
