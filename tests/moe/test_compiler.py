"""How C++ kernels are come by: compiled once, and done without where that cannot be."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from moe import compiler, native

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one function; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "seven.cpp"
    path.write_text('extern "C" int seven() { return 7; }')
    return path


@needs_compiler
def test_a_library_is_compiled_once_for_all_it_depends_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiler.compiled(source)
    assert ctypes.CDLL(str(path)).seven() == 7
    written = path.stat().st_mtime_ns
    assert compiler.compiled(source) == path
    assert path.stat().st_mtime_ns == written
    assert list(compiler.cache_directory().iterdir()) == [path], "nothing is left lying about"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(compiler, "_processor", lambda: "another one")
        assert compiler.compiled(source) != path
    (source.parent / "numbers.h").write_text("constexpr int kSeven = 7;")
    with_header = compiler.compiled(source)
    source.write_text('extern "C" int seven() { return 6 + 1; }')
    assert len({path, with_header, compiler.compiled(source)}) == 3


@pytest.mark.parametrize("command", ["false", "no-such-compiler", "false --with 'an argument'", "c++ '"])
def test_without_a_working_compiler_the_log_says_what_is_done_instead(
    command: str, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", command)
    with caplog.at_level(logging.WARNING):
        assert compiler.load_or_none(source, "we count by hand") is None
    assert "we count by hand" in caplog.text


def test_a_user_without_a_home_directory_does_without(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with caplog.at_level(logging.WARNING):
        assert compiler.load_or_none(source, "we count by hand") is None
    assert "home directory" in caplog.text


@needs_compiler
def test_a_path_may_hold_spaces(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent / "my cache"))
    library = compiler.load_or_none(source.rename(source.parent / "my seven.cpp"), "we count by hand")
    assert library is not None
    assert library.seven() == 7


@needs_compiler
def test_what_the_compiler_said_is_in_the_log(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.write_text("int main( {")
    with pytest.raises(subprocess.SubprocessError):
        compiler.compiled(source)
    with caplog.at_level(logging.WARNING):
        assert compiler.load_or_none(source, "") is None
    assert "seven.cpp:1" in caplog.text


def test_other_types_and_odd_widths_are_left_to_pytorch() -> None:
    assert native.kernel_blocks(torch.ones(2, 4, dtype=torch.float64), 1, 6) is None
    assert native.kernel_blocks(torch.ones(2, 4, dtype=torch.bfloat16), 1, 5) is None
    assert native.kernel_blocks(torch.ones(2, 5, dtype=torch.bfloat16), 1, 6) is None


@pytest.mark.parametrize(
    ("processor", "dtype", "rows", "experts", "hidden", "intermediate", "is_taken"),
    [
        ("AVX2", torch.float32, 8192, 128, 256, 192, True),
        ("AVX2", torch.float32, 8192, 128, 1024, 512, False),
        ("AVX2", torch.float32, 8192, 32, 256, 192, False),
        ("AVX2", torch.bfloat16, 8192, 32, 1024, 512, True),
        ("AVX512", torch.float32, 8192, 32, 1024, 512, True),
        ("NO AVX", torch.float32, 8192, 128, 256, 192, False),
    ],
)
def test_the_kernel_is_taken_where_it_is_faster(
    processor: str,
    dtype: torch.dtype,
    rows: int,
    experts: int,
    hidden: int,
    intermediate: int,
    is_taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = object()
    monkeypatch.setattr(native, "_load", lambda suffix: loaded)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    copies_MD = torch.empty(rows, hidden, dtype=dtype)
    assert native.kernel_blocks(copies_MD, experts, intermediate) is (loaded if is_taken else None)
