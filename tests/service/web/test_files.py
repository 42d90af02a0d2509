"""What the page is made of, and how it is served."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from scripts.vendor_web import DIRECTORIES, ROOT, read_notice
from service.api.web import DIRECTORY


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_vendored_files_are_those_that_the_notice_names(directory: Path) -> None:
    found = {line.file: line.sha256 for line in read_notice(directory)}
    there = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} - {"NOTICE"}
    assert set(found) == there
    for file, sha256 in found.items():
        assert hashlib.sha256((directory / file).read_bytes()).hexdigest() == sha256, file
    packages = {line.package for line in read_notice(directory)}
    assert {f"licences/{package}.txt" for package in packages} <= there


def test_the_page_may_load_only_what_is_served_here(http: TestClient) -> None:
    page = http.get("/", headers={"Authorization": ""})
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|style=", page.text) == [], "nothing inline"
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = http.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"] == policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert http.get("/web/nothing.js").status_code == 404
    assert http.get("/web/../settings.py").status_code == 404


def test_a_file_that_has_not_changed_is_not_sent_again(http: TestClient) -> None:
    first = http.get("/web/js/main.js")
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["content-type"].startswith("text/javascript")
    again = http.get("/web/js/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


def test_a_wheel_has_every_file_of_the_page(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "service", tmp_path / "service")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(tmp_path)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    files = {str(path.relative_to(ROOT)) for path in DIRECTORY.rglob("*") if path.is_file()}
    assert len(files) > 30
    assert files <= set(zipfile.ZipFile(wheel).namelist())
