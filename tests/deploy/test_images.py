"""The container files. They cannot be built without an engine, so what they name and install is checked one by one."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from deploy.images import pins
from tests.deploy import commands
from tests.deploy.rendering import ROOT

IMAGES = ROOT / "deploy" / "images"
FILES = sorted(IMAGES.glob("*.Dockerfile"))
PINS = {"control-plane": ("control-plane",), "ray": ("cluster", "cuda")}
"""Files of pins that each image installs."""


def instructions(text: str) -> list[list[str]]:
    """Words of each instruction, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [line.split() for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


def lint(*files: Path) -> str:
    """What hadolint finds."""
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", "--config", IMAGES / "hadolint.yaml", *files]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_hadolint_finds_nothing() -> None:
    assert len(FILES) == 2
    assert lint(*FILES) == ""


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.Dockerfile"
    text = FILES[0].read_text()
    spoilt.write_text(re.sub(r"python:\S+", "python:latest", text).replace("USER 10001:10001", "USER root"))
    found = lint(spoilt)
    assert "DL3007" in found
    assert "DL3002" in found


def copied(text: str) -> list[str]:
    """Sources of COPY that lie in the build context."""
    return [
        source
        for word, *rest in instructions(text)
        if word == "COPY" and not rest[0].startswith("--from")
        for source in rest[:-1]
    ]


def is_sent(path: str) -> bool:
    """Whether `.dockerignore` lets a path into the build context: its last line decides that matches it or a parent."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not pattern or line.startswith("#"):
            continue
        parts = path.split("/")
        parents = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        candidates = parts if line.startswith("**/") else parents
        if any(fnmatch.fnmatch(item, pattern) and item.count("/") == pattern.count("/") for item in candidates):
            sent = line.startswith("!")
    return sent


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_is_there_and_sent(file: Path) -> None:
    sources = copied(file.read_text())
    assert {"service", "ray_jobs", "moe"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source


def test_nothing_else_is_sent() -> None:
    for path in (".git/config", ".sleddog/secret", "deploy/compose/secrets/ray-token", "tests/conftest.py", "docs"):
        assert not is_sent(path), path
    assert is_sent("service/cli.py")
    assert not is_sent("service/__pycache__/cli.cpython-311.pyc")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_images_run_as_a_number_that_is_not_root_and_tell_their_health(file: Path) -> None:
    found = instructions(file.read_text())
    stage = found[max(index for index, words in enumerate(found) if words[0] == "FROM") :]
    assert [words[1] for words in stage if words[0] == "USER"] == ["10001:10001"]
    assert len([words for words in stage if words[0] == "HEALTHCHECK"]) == 1
    labels = {word.partition("=")[0] for words in stage if words[0] == "LABEL" for word in words}
    assert {f"org.opencontainers.image.{name}" for name in ("title", "licenses", "version", "revision")} <= labels


def test_an_image_asks_after_its_health_where_it_listens() -> None:
    text = (IMAGES / "control-plane.Dockerfile").read_text()
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    port = commands.parse(json.loads(command))["port"]
    assert (
        re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", text)
        == re.findall(r"^EXPOSE (.*)", text, re.MULTILINE)
        == [str(port)]
    )
    text = (IMAGES / "ray.Dockerfile").read_text()
    assert re.findall(r"http://127\.0\.0\.1:(\d+)/api/healthz", text) == [str(DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bases_are_pinned_and_nothing_is_installed_unpinned(file: Path) -> None:
    found = instructions(file.read_text())
    stages = {words[3] for words in found if words[0] == "FROM" and len(words) > 3}
    for words in found:
        if words[0] == "FROM" and words[1] not in stages:
            assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[\w.-]+(@sha256:[0-9a-f]{64})?", words[1]), words[1]
    installs = [text for words in found for text in re.findall(r"pip install ([^&|]*)", " ".join(words))]
    assert len(installs) >= 2
    for arguments in map(shlex.split, installs):
        assert "--no-deps" in arguments
        assert "-r" in arguments or "." in arguments


def test_pins_are_those_of_the_lock() -> None:
    for image in pins.EXTRAS:
        assert (IMAGES / f"{image}.txt").read_text() == pins.pins_of(image), "run `make image-pins`"


def test_a_pin_of_another_version_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*pins.BY_HAND, *pins.EXTRAS):
        (tmp_path / f"{name}.txt").write_text((IMAGES / f"{name}.txt").read_text())
    monkeypatch.setattr(pins, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pins.py", "--check"])
    assert pins.main() == 0
    spoilt = tmp_path / "control-plane.txt"
    spoilt.write_text(re.sub("^fastapi==.*$", "fastapi==0.1", spoilt.read_text(), flags=re.MULTILINE))
    assert pins.main() == 1


def installed(image: str) -> dict[str, str]:
    """Pins of an image, by canonical name; a package has one."""
    found: dict[str, str] = {}
    for name in PINS[image]:
        of_file = pins.read_pins(IMAGES / f"{name}.txt")
        assert not found.keys() & of_file.keys(), name
        found |= {name: line.partition("==")[2] for name, line in of_file.items()}
    return found


def test_only_the_ray_image_has_pytorch_and_each_image_what_its_extras_ask() -> None:
    assert not {"torch", "transformers", "deepspeed"} & installed("control-plane").keys()
    assert {"torch", "transformers", "deepspeed", "nvidia-nccl-cu13"} <= installed("ray").keys()
    for image, extras in (("control-plane", ("server", "postgres", "s3")), ("ray", ("cluster", "s3"))):
        for item in pins.declared(extras):
            assert unmet(item, installed(image)) is None


def unmet(item: Requirement, versions: dict[str, str]) -> str | None:
    """Why pins do not meet a requirement."""
    version = versions.get(pins.canonicalize_name(item.name))
    return None if version is not None and item.specifier.contains(version) else f"{item}: {version}"


def test_an_unmet_requirement_is_noticed() -> None:
    assert unmet(Requirement("torch==2.13.0"), {"torch": "2.12.0"}) == "torch==2.13.0: 2.12.0"
    assert unmet(Requirement("torch==2.13.0"), {}) == "torch==2.13.0: None"


def unmet_of_all(versions: dict[str, str]) -> list[str]:
    """What `pip check` would say of these pins, as far as they are installed here."""
    found = []
    for name in sorted(versions):
        try:
            items = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # CUDA's libraries
            continue
        needed = [item for item in items if item.marker is None or item.marker.evaluate({"extra": ""})]
        found += [f"{name} needs {why}" for item in needed if (why := unmet(item, versions))]
    return found


@pytest.mark.parametrize("image", PINS)
def test_what_an_image_installs_needs_nothing_else(image: str) -> None:
    assert unmet_of_all(installed(image)) == []


def test_what_a_package_needs_and_the_image_lacks_is_noticed() -> None:
    versions = installed("ray")
    del versions["aiohttp"]
    versions["python-dateutil"] = "4.0.0"
    found = "; ".join(unmet_of_all(versions))
    assert re.search(r"aiobotocore needs aiohttp\S*: None", found)
    assert re.search(r"botocore needs python-dateutil\S*: 4.0.0", found)


def run_with_pins(pinned: set[str], directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that sees the project and the packages of some pins, as installed here, and nothing else."""
    for name in pinned:
        for file in distribution(name).files or ():
            top = file.parts[0]
            link = directory / top
            if top not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    paths = f"import sys; sys.path[:0] = [{str(directory)!r}, {str(ROOT)!r}]; "
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", paths + script], capture_output=True, text=True, cwd=directory, check=False
    )


LOAD = {
    "control-plane": "import service.cli, service.serve, psycopg, s3fs",
    # Ray leaves its dashboard out, and the Jobs API with it, where a package of this list is missing.
    "cluster": "import ray.dashboard.optional_deps, ray_jobs.finetune, ray_jobs.ablate, ray_jobs.train.loop, s3fs",
}
"""What each image is for."""


@pytest.mark.parametrize("image", LOAD)
def test_an_image_needs_no_more_than_its_pins(image: str, tmp_path: Path) -> None:
    script = f"{LOAD[image]}; import importlib.util as u; print(u.find_spec('torch') is not None)"
    answer = run_with_pins(set(pins.read_pins(IMAGES / f"{image}.txt")), tmp_path, script)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == str(image == "cluster")


@pytest.mark.parametrize(("image", "name"), [("control-plane", "sqlalchemy"), ("cluster", "aiohttp-cors")])
def test_a_pin_that_is_missing_is_noticed(image: str, name: str, tmp_path: Path) -> None:
    answer = run_with_pins(set(pins.read_pins(IMAGES / f"{image}.txt")) - {name}, tmp_path, LOAD[image])
    assert f"No module named '{name.replace('-', '_')}'" in answer.stderr
