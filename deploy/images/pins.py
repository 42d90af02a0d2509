"""Writes what the images install: the part of `requirements.lock` that their extras of `sleddog` draw in.

The images get no version of their own: each line here is the lock's, so that what is tested is what ships. Which lines
are needed is read from the metadata of the installed packages; no index is asked. `cuda.txt` holds what the lock does
not have and is kept by hand; a package that is pinned there is left out here.

    python deploy/images/pins.py            # write control-plane.txt and cluster.txt
    python deploy/images/pins.py --check    # fail if they are not what would be written
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXTRAS: Mapping[str, tuple[str, ...]] = {"control-plane": ("server", "postgres", "s3"), "cluster": ("cluster", "s3")}
BY_HAND = ("cuda",)
BUILD = ("setuptools", "wheel")
"""What makes a wheel of `sleddog` itself; needed in every image's build stage, pinned as all else."""


def read_pins(path: Path) -> dict[str, str]:
    """Lines `name==version` of a file, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if line}


def declared(extras: Iterable[str]) -> list[Requirement]:
    """What `pyproject.toml` asks for, with some of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """Canonical names of packages and of all that they need here, extras included."""
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(item.name), extra) for item in wanted for extra in ("", *sorted(item.extras))]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in requires(name) or ():
            item = Requirement(text)
            if item.marker is None or item.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(item.name), other) for other in ("", *sorted(item.extras))]
    return {name for name, _ in found}


def pins_of(image: str) -> str:
    """Content of an image's file of pins."""
    extras = EXTRAS[image]
    lock = read_pins(ROOT / "requirements.lock")
    elsewhere = {name for other in BY_HAND for name in read_pins(HERE / f"{other}.txt")}
    names = closure(declared(extras)).union(BUILD) - elsewhere
    lines = sorted(lock[name] for name in names)
    head = f"# sleddog[{','.join(extras)}], from requirements.lock by deploy/images/pins.py"
    return "\n".join([head, *lines]) + "\n"


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    stale = [image for image in EXTRAS if pins_of(image) != _present(image)]
    if is_check:
        for image in stale:
            sys.stderr.write(f"deploy/images/{image}.txt is not of requirements.lock: run `make image-pins`\n")
        return 1 if stale else 0
    for image in stale:
        (HERE / f"{image}.txt").write_text(pins_of(image))
    return 0


def _present(image: str) -> str:
    path = HERE / f"{image}.txt"
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
