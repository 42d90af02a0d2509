"""How the experts' kernel is come by: compiled once, and done without where that cannot be."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from moe import native

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
needs_avx512 = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="no AVX-512")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return native.cache_directory()


@needs_compiler
@needs_avx512
def test_it_is_compiled_once_for_all_it_depends_on(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = native.compiled()
    written = path.stat().st_mtime_ns
    assert native.compiled() == path
    assert path.stat().st_mtime_ns == written
    assert list(empty_cache.iterdir()) == [path], "nothing is left lying about"
    monkeypatch.setattr(native, "_processor", lambda: "another one")
    assert native.compiled() != path


@needs_compiler
@needs_avx512
@pytest.mark.parametrize("compiler", ["false", "no-such-compiler", "false --with 'an argument'"])
def test_without_a_working_compiler_pytorch_does_it_and_the_log_says_so(
    compiler: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING):
        assert native._library.__wrapped__() is None
    assert "PyTorch computes the experts" in caplog.text


@needs_compiler
@needs_avx512
def test_what_the_compiler_said_is_in_the_log(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.cpp").write_text("int main( {")
    monkeypatch.setattr(native, "SOURCE", tmp_path / "broken.cpp")
    with pytest.raises(subprocess.SubprocessError):
        native.compiled()
    with caplog.at_level(logging.WARNING):
        assert native._library.__wrapped__() is None
    assert "broken.cpp:1" in caplog.text


def test_other_types_and_odd_widths_are_left_to_pytorch() -> None:
    assert native.kernel_blocks(torch.ones(2, 4, dtype=torch.float64), 6) is None
    assert native.kernel_blocks(torch.ones(2, 4, dtype=torch.bfloat16), 5) is None
    assert native.kernel_blocks(torch.ones(2, 5, dtype=torch.bfloat16), 6) is None
