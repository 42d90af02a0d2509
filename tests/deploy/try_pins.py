"""Installs the control plane as its image does, into a new environment, and starts its commands there.

It downloads some 250 MB, so it is no part of the tests; run it when the pins have changed:

    python -m tests.deploy.try_pins
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.deploy.rendering import ROOT
from tests.deploy.test_images import IMAGES, copied

_COMMANDS = (["--help"], ["serve", "--help"], ["migrate", "--help"])
_LOADS = "import importlib.util as u, s3fs, psycopg, service.serve; assert not u.find_spec('torch')"


def main(directory: Path) -> None:
    """Install, check, start."""
    venv.create(directory / "venv", with_pip=True)
    python, source = directory / "venv" / "bin" / "python", directory / "source"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    pinned = ["-r", str(IMAGES / "control-plane.txt")]
    subprocess.run([*pip, "install", "--no-deps", "--only-binary", ":all:", *pinned], check=True)
    source.mkdir()
    for name in copied((IMAGES / "control-plane.Dockerfile").read_text()):
        if not name.startswith("deploy/"):
            subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", str(source)], check=True)
    subprocess.run([*pip, "check"], check=True)
    for arguments in _COMMANDS:
        subprocess.run([python.with_name("sleddog"), *arguments], check=True, cwd=directory)
    subprocess.run([python, "-c", _LOADS], check=True, cwd=directory)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
    sys.stdout.write("the pins install, and the commands start\n")
