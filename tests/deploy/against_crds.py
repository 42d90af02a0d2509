"""Validates the rendered manifests by the operators' own definitions (CRDs), which this project does not ship.

    python -m tests.deploy.against_crds DIRECTORY

The directory holds the definitions as YAML, in any depth: of KubeRay `ray-operator/config/crd/bases`, of Kueue
`config/components/crd/bases`, of the Prometheus operator `example/prometheus-operator-crd`. It ends with 1 if something
is at fault, and with 2 if a custom resource has no definition there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.deploy.crd import Definitions
from tests.deploy.rendering import RENDERINGS, render


def main(directory: Path) -> int:
    """Print a line for each custom resource of each rendering."""
    documents = [document for path in sorted(directory.rglob("*.y*ml")) for document in _read(path)]
    definitions, status = Definitions(documents), 0
    for rendering in RENDERINGS:
        for document in render(rendering):
            group, _, _ = document["apiVersion"].rpartition("/")
            if "." not in group or (group.endswith(".k8s.io") and "kueue" not in group):
                continue  # Kubernetes' own
            faults = definitions.faults(document)
            verdict = "no definition" if faults is None else "; ".join(faults) or "valid"
            status = max(status, 2 if faults is None else int(bool(faults)))
            named = f"{document['apiVersion']} {document['kind']} {document['metadata']['name']}"
            sys.stdout.write(f"{rendering}: {named}: {verdict}\n")
    return status


def _read(path: Path) -> list[dict[str, object]]:
    return [document for document in yaml.load_all(path.read_text(), yaml.CSafeLoader) if isinstance(document, dict)]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
