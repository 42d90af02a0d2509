"""What network policies let through, decided as Kubernetes does: what no policy selects is open, and rules add up."""

from __future__ import annotations

from typing import Any

from tests.deploy.rendering import Document

Labels = dict[str, str]
HERE: Labels = {"kubernetes.io/metadata.name": "sleddog"}


def selects(selector: Document, labels: Labels) -> bool:
    """Whether a label selector matches."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In", "the one operator in use"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def may_reach(documents: list[Document], source: Labels, target: Labels, port: int, namespace: Labels = HERE) -> bool:
    """Whether pods with some labels may open a connection to a port of others in the namespace `sleddog`.

    Args:
        documents: rendered manifests.
        source: labels of who connects.
        target: labels of who is connected to.
        port: of the target's container.
        namespace: labels of the source's namespace.
    """
    arrives = _allows(documents, "Ingress", target, source, port, namespace)
    return arrives and (namespace != HERE or _allows(documents, "Egress", source, target, port, HERE))


def may_leave(documents: list[Document], source: Labels, port: int) -> bool:
    """Whether pods may open a connection to an address outside of the cluster."""
    return _allows(documents, "Egress", source, None, port, {})


def _allows(
    documents: list[Document], way: str, subject: Labels, peer: Labels | None, port: int, peer_namespace: Labels
) -> bool:
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    own = [spec for spec in policies if way in spec["policyTypes"] and selects(spec["podSelector"], subject)]
    peers, rules = ("from", "ingress") if way == "Ingress" else ("to", "egress")
    return not own or any(
        (peers not in rule or any(_is_peer(item, peer, peer_namespace) for item in rule[peers]))
        and ("ports" not in rule or any(item["port"] == port for item in rule["ports"]))
        for spec in own
        for rule in spec.get(rules, ())
    )


def _is_peer(item: dict[str, Any], labels: Labels | None, namespace: Labels) -> bool:
    if labels is None or "ipBlock" in item:
        return labels is None and "ipBlock" in item
    if "namespaceSelector" in item:
        return selects(item["namespaceSelector"], namespace) and selects(item.get("podSelector", {}), labels)
    return namespace == HERE and selects(item["podSelector"], labels)
