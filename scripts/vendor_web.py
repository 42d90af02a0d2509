"""Brings the libraries of the web page, and of its tests, as `NOTICE` files name them: `make vendor-web`.

To take a newer version, write it into the `NOTICE`, run this, and write the hash that it tells. Two things are changed
in the files, so that a browser can load them from this service as they lie here: the bare name `preact` becomes a path,
and references to source maps, which are not shipped, go.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DIRECTORIES = (ROOT / "service/web/vendor", ROOT / "tests/service/web/vendor")
_LINE = re.compile(r"^(?P<file>\S+) +(?P<package>\S+) +(?P<version>\d\S+) +(?P<member>\S+) +(?P<sha256>[0-9a-f]{64})$")


class Vendored(NamedTuple):
    """A file, and where it is from: the member of an npm package's version."""

    file: str
    package: str
    version: str
    member: str
    sha256: str


def read_notice(directory: Path) -> list[Vendored]:
    """What a directory's `NOTICE` lists."""
    lines = (directory / "NOTICE").read_text().splitlines()
    return [Vendored(**found.groupdict()) for found in map(_LINE.match, lines) if found]


def adapted(content: bytes) -> bytes:
    """A file of a package, so that a browser can load it from here."""
    content = content.replace(b'from"preact"', b'from"./preact.js"')
    return re.sub(rb"\n//# sourceMappingURL=.*\n?", b"\n", content)


def fetch(wanted: Vendored, directory: Path) -> str:
    """Write a file; returns its hash."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", f"{wanted.package}@{wanted.version}"]
        name = subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(Path(scratch) / name) as package:
            member = package.extractfile(f"package/{wanted.member}")
            assert member is not None, f"{wanted.member} is no file"
            content = adapted(member.read())
    path = directory / wanted.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    """Fetch all; 1 when one is not what its `NOTICE` says."""
    is_wrong = False
    for directory in DIRECTORIES:
        for wanted in read_notice(directory):
            found = fetch(wanted, directory)
            is_wrong |= found != wanted.sha256
            print(f"{wanted.file}: {'as named' if found == wanted.sha256 else found}")
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
