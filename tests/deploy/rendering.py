"""Renders the manifests as a user does, by `kubectl kustomize`, which needs no cluster.

The pinned kubectl is the one beside Python (`make kubectl`); without it that of the machine will do, from 1.27 on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("local", "32x8-h100")
COMPONENTS = ("infiniband", "gcs-rocksdb", "autoscaling")
RENDERINGS = (*OVERLAYS, *(f"32x8-h100+{component}" for component in COMPONENTS))
_LEAST_MINOR = 27

Document = dict[str, Any]


def find_kubectl(directories: str | None = None) -> str | None:
    """The program to render with; None where there is none, or too old a one."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if directories is None and beside.exists() else shutil.which("kubectl", path=directories)
    if found is None:
        return None
    answer = subprocess.run([found, "version", "--client", "--output=json"], capture_output=True, check=True)
    minor = json.loads(answer.stdout)["clientVersion"]["minor"].rstrip("+")
    return found if int(minor) >= _LEAST_MINOR else None


@cache
def _rendered(rendering: str) -> str:
    kubectl = find_kubectl()
    if kubectl is None:
        pytest.skip(f"no kubectl of 1.{_LEAST_MINOR} or later: run `make kubectl`")
    overlay, _, component = rendering.partition("+")
    if not component:
        return _as_json(_kustomize(kubectl, KUBERNETES / "overlays" / overlay))
    with tempfile.TemporaryDirectory(dir=KUBERNETES / "overlays") as directory:  # Kustomize wants relative paths
        kustomization = {"resources": [f"../{overlay}"], "components": [f"../../components/{component}"]}
        (Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _as_json(_kustomize(kubectl, Path(directory)))


def _kustomize(kubectl: str, directory: Path) -> str:
    answer = subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def _as_json(text: str) -> str:
    """Which is read many times faster than YAML."""
    return json.dumps(list(yaml.load_all(text, yaml.CSafeLoader)))


def render(rendering: str) -> list[Document]:
    """Objects of an overlay, or of `overlay+component`; each call's own copy."""
    return list(json.loads(_rendered(rendering)))


def one(documents: list[Document], kind: str, name: str) -> Document:
    """The object of that kind and name."""
    [found] = [item for item in documents if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pod_templates(documents: list[Document]) -> dict[str, Document]:
    """Of all that makes pods, by a name that says which."""
    found: dict[str, Document] = {}
    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        if kind == "RayCluster":
            found[f"{name}/head"] = spec["headGroupSpec"]["template"]
            for group in spec.get("workerGroupSpecs", ()):
                found[f"{name}/{group['groupName']}"] = group["template"]
        elif "template" in spec:
            found[f"{kind}/{name}"] = spec["template"]
    return found


def containers_of(template: Document) -> list[Document]:
    """Of a pod, those that run before the others too."""
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]
