"""Writes the alerts for the Prometheus operator, which wants them inside an object of its own.

The one source is `deploy/observe/alerts.yaml`, a plain file of Prometheus rules; Kustomize cannot put one file into a
field of another.

    python deploy/kubernetes/alerts.py            # write components/monitoring/alerts.yaml
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
SOURCE = HERE.parent / "observe" / "alerts.yaml"
TARGET = HERE / "components" / "monitoring" / "alerts.yaml"
_HEAD = "# From deploy/observe/alerts.yaml by deploy/kubernetes/alerts.py; change it there.\n"


def wrapped(rules: str) -> str:
    """The object.

    Args:
        rules: content of a file of Prometheus rules.
    """
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "sleddog", "namespace": "sleddog"},
        "spec": {"groups": yaml.safe_load(rules)["groups"]},
    }
    return _HEAD + yaml.safe_dump(document, sort_keys=False, width=120)


if __name__ == "__main__":
    TARGET.write_text(wrapped(SOURCE.read_text()))
