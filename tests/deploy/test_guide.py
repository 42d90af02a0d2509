"""The guide to deploying: its commands exist, what they make is what the manifests name, and what it names is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import KUBERNETES, OVERLAYS, ROOT, Document, find_kubectl, one, pod_templates, render
from tests.docs.command_lines import simple_commands
from tests.docs.pages import SHELLS, blocks, page_paths

GUIDE = ROOT / "docs" / "guides" / "deploy.md"
SECTIONS = {"local": "### On your own machine", "32x8-h100": "### 32 nodes of 8 H100"}
RAY_TOKEN_KEY = "auth_token"
"""Key by which KubeRay reads the token out of its secret."""

_VARIABLES = "password=x DATABASE_URL=x REDIS_PASSWORD=x PROMETHEUS_KEY=x"
"""What a reader has set before."""
_OF_SEVERAL_WORDS = ("create", "secret", "generic", "namespace", "rollout", "status")

Keys = set[tuple[str, str]]
"""Names of secrets, and of what is in them."""


def section(heading: str) -> str:
    """Text of the guide below a heading, up to the next of its rank or a higher one."""
    text = GUIDE.read_text().partition(f"{heading}\n")[2]
    rank = heading.count("#")
    return re.split(rf"^#{{1,{rank}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


@cache
def kubectl() -> str:
    if (found := find_kubectl()) is None:
        pytest.skip("no kubectl: run `make kubectl`")
    return found


def made_secrets(text: str) -> Keys:
    """What the commands of a text make, as kubectl itself says; no cluster is asked."""
    environment = os.environ | {"PATH": f"{kubectl().rpartition('/')[0]}:{os.environ['PATH']}"}
    made: Keys = set()
    for command in re.findall(r"^kubectl .*create secret(?:.*\\\n)*.*$", text, re.MULTILINE):
        script = f"{_VARIABLES}; {command} --dry-run=client --output=json"
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        secret = json.loads(done.stdout)
        assert secret["metadata"]["namespace"] == "sleddog"
        made |= {(secret["metadata"]["name"], key) for key in secret["data"]}
    return made


def references(value: Any) -> Iterator[tuple[str, str]]:
    """Secrets that any part of an object refers to by name and key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("secretKeyRef", "credentials"):
                yield inner["name"], inner["key"]
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def mounted(template: Document) -> Keys:
    """Secrets whose files a pod names by their paths; of one whose files nobody names, an empty key."""
    spec, text = template["spec"], json.dumps(template)
    found: Keys = set()
    for volume in spec.get("volumes", ()):
        if name := volume.get("secret", {}).get("secretName"):
            containers = [*spec.get("initContainers", ()), *spec["containers"]]
            mounts = [mount for item in containers for mount in item["volumeMounts"] if mount["name"] == volume["name"]]
            keys = {key for mount in mounts for key in re.findall(rf'"{mount["mountPath"]}/([^"/]+)"', text)}
            found |= {(name, key) for key in keys or {""}}
    return found


def needed_secrets(documents: list[Document]) -> Keys:
    """What the manifests refer to."""
    found = {reference for document in documents for reference in references(document)}
    for template in pod_templates(documents).values():
        found |= mounted(template)
    clusters = [document["spec"] for document in documents if document["kind"] == "RayCluster"]
    return found | {(spec["authOptions"]["secretName"], RAY_TOKEN_KEY) for spec in clusters}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_guide_makes_the_secrets_that_the_manifests_read_and_no_others(overlay: str) -> None:
    assert made_secrets(section(SECTIONS[overlay])) == needed_secrets(render(overlay))


def test_the_guide_leads_to_the_database_in_the_cluster() -> None:
    documents = render("local")
    found = re.findall(r'url="postgresql://(\w+):\$password@(\w+)/(\w+)"', section(SECTIONS["local"]))
    container = one(documents, "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"][0]
    variables = {item["name"]: item.get("value") for item in container["env"]}
    service = one(documents, "Service", "postgres")["metadata"]["name"]
    assert found == [(variables["POSTGRES_USER"], service, variables["POSTGRES_DB"])]


def test_a_wrong_key_on_either_side_is_noticed() -> None:
    text, documents = section(SECTIONS["local"]), render("local")
    wrong = made_secrets(text.replace("=auth_token=", "=token=")) ^ needed_secrets(documents)
    assert wrong == {("sleddog-ray-token", "token"), ("sleddog-ray-token", "auth_token")}
    spoilt = json.loads(json.dumps(documents).replace("server-secret/secret", "server-secret/secrets"))
    assert made_secrets(text) ^ needed_secrets(spoilt) == {
        ("sleddog-server-secret", "secret"),
        ("sleddog-server-secret", "secrets"),
    }


def kubectl_commands() -> list[list[str]]:
    """Of all pages."""
    found = [block for path in page_paths() for block in blocks(path.read_text(), path.name)]
    shells = [block.text for block in found if block.language in SHELLS]
    return [words for text in shells for words in simple_commands(text) if words[0] == "kubectl"]


def kubectl_fault(words: list[str]) -> str | None:
    """What kubectl does not know of a command; what is run in a container is not its own."""
    own = words[1 : words.index("--")] if "--" in words else words[1:]
    if own[:2] == ["-n", "sleddog"]:
        own = own[2:]
    path = [word for word in own[:3] if own[0] in _OF_SEVERAL_WORDS and word in _OF_SEVERAL_WORDS] or own[:1]
    done = subprocess.run([kubectl(), *path, "--help"], capture_output=True, text=True, check=False)
    if done.returncode != 0 or "Usage:" not in done.stdout:
        return f"no {' '.join(path)}"
    options = {word.partition("=")[0] for word in own if word.startswith("--")}
    return next((f"no {name}" for name in sorted(options) if not re.search(rf"{name}[=\s]", done.stdout)), None)


def test_commands_of_kubectl_exist() -> None:
    commands = kubectl_commands()
    assert len(commands) > 20
    faults = [f"{' '.join(words)}: {fault}" for words in commands if (fault := kubectl_fault(words))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("kubectl -n sleddog aply -k there", "no aply"),
        ("kubectl -n sleddog rollout status deployment/x --time=1m", "no --time"),
        ("kubectl create secret generic x --from-literals=a=b", "no --from-literals"),
        ("kubectl exec pod/x -- sleddog --nonsense", None),
    ],
)
def test_a_command_of_kubectl_that_does_not_exist_is_noticed(command: str, fault: str | None) -> None:
    assert kubectl_fault(command.split()) == fault


def test_files_and_services_that_the_guide_names_are_there() -> None:
    text = GUIDE.read_text()
    for path in re.findall(r"deploy/(?:kubernetes/overlays|images|compose|observe)[\w./-]*", text):
        assert (ROOT / path).exists() or path.startswith("deploy/kubernetes/overlays/mine"), path
    overlay = section(SECTIONS["32x8-h100"])
    for name in re.findall(r"^\| `([\w-]+\.(?:yaml|json))` \|", overlay, re.MULTILINE):
        assert (KUBERNETES / "overlays" / "32x8-h100" / name).is_file(), name
    components = set(re.findall(r"^\| `([\w-]+)` \|", section("#### Components"), re.MULTILINE))
    assert components == {path.name for path in (KUBERNETES / "components").iterdir()} - {"monitoring"}
    services = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())["services"]
    assert set(re.findall(r"docker compose (?:exec|stop) (\S+)", text)) <= services.keys()


def test_what_the_guide_waits_for_is_made() -> None:
    for overlay, heading in SECTIONS.items():
        made = {(item["kind"].lower(), item["metadata"]["name"]) for item in render(overlay)}
        named = re.findall(r"\b(deployment|service|job|raycluster)[/ ](sleddog[\w-]*)", section(heading))
        assert named
        assert set(named) <= made, overlay
