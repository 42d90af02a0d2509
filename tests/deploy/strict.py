"""Validates manifests strictly: a key that the API does not know is a fault, as the API server would let it pass.

Kubernetes' own kinds by the schemas of `kubernetes-validate`; those of the Prometheus operator by the models of
cloudcoil, which drop what they do not know, so what comes out must be what went in; those of KubeRay and Kueue by
`tests/deploy/schemas`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

from tests.deploy.crd import broken_rules
from tests.deploy.rendering import Document
from tests.deploy.schemas.kueue import CLUSTER_QUEUE, LOCAL_QUEUE, RESOURCE_FLAVOR
from tests.deploy.schemas.ray import RAY_CLUSTER

KUBERNETES_VERSION = "1.37"
OWN_SCHEMAS = {
    "RayCluster": RAY_CLUSTER,
    "ResourceFlavor": RESOURCE_FLAVOR,
    "ClusterQueue": CLUSTER_QUEUE,
    "LocalQueue": LOCAL_QUEUE,
}


class RefusedManifestError(Exception):
    """A manifest that the API would refuse, or would take and ignore a part of."""


def validate(document: Document) -> None:
    """Validate one object.

    Raises:
        RefusedManifestError: with the path of what is at fault.
    """
    if document["kind"] in OWN_SCHEMAS:
        _by_own_schema(document)
    elif document["apiVersion"].startswith("monitoring.coreos.com/"):
        _by_round_trip(document)
    else:
        _by_kubernetes(document)


def _by_kubernetes(document: Document) -> None:
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        raise RefusedManifestError(f"{document['kind']}: {error}") from error


def _by_own_schema(document: Document) -> None:
    for fault in Draft202012Validator(OWN_SCHEMAS[document["kind"]]).iter_errors(document):
        raise RefusedManifestError(f"{document['kind']}: {fault.json_path}: {fault.message}")
    for broken in broken_rules(OWN_SCHEMAS[document["kind"]], document, document["kind"]):
        raise RefusedManifestError(broken)
    if document["kind"] == "RayCluster":
        spec = document["spec"]
        for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", ())):
            _by_kubernetes(_pod_template(group["template"]))
        if options := spec.get("autoscalerOptions"):
            parts = {key: options[key] for key in ("resources", "securityContext") if key in options}
            _by_kubernetes(_pod_template({"spec": {"containers": [{"name": "autoscaler", **parts}]}}))


def _pod_template(template: Any) -> Document:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template}


def _by_round_trip(document: Document) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models' own package
        from cloudcoil.models.prometheus_operator import v1

    kinds: dict[str, Callable[[Any], Any]] = {
        "ServiceMonitor": v1.ServiceMonitor.model_validate,
        "PodMonitor": v1.PodMonitor.model_validate,
        "PrometheusRule": v1.PrometheusRule.model_validate,
    }
    try:
        model = kinds[document["kind"]](document)
    except ValueError as error:
        raise RefusedManifestError(f"{document['kind']}: {error}") from error
    if lost := _lost(document, model.model_dump(by_alias=True, exclude_unset=True, mode="json"), document["kind"]):
        raise RefusedManifestError(f"{lost} is no field")


def _lost(given: Any, kept: Any, path: str) -> str | None:
    """Path of the first thing that is not kept."""
    if isinstance(given, dict) and isinstance(kept, dict):
        if missing := sorted(given.keys() - kept.keys()):
            return f"{path}.{missing[0]}"
        found = (_lost(value, kept[key], f"{path}.{key}") for key, value in given.items())
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        found = (_lost(value, other, f"{path}[{index}]") for index, (value, other) in pairs)
    else:
        return None if given == kept else path
    return next((lost for lost in found if lost is not None), None)
