"""What network policies let through, decided as Kubernetes does: what no policy selects is open, and rules add up."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from tests.deploy.rendering import Document

Labels = dict[str, str]
HERE: Labels = {"kubernetes.io/metadata.name": "sleddog"}
SOMEWHERE = "198.51.100.1"


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


def may_leave(documents: list[Document], source: Labels, port: int, address: str = SOMEWHERE) -> bool:
    """Whether pods may open a connection to an address outside of the cluster."""
    return _allows(documents, "Egress", source, address, port, {})


def may_ask(documents: list[Document], source: Labels, port: int, namespace: Labels) -> bool:
    """Whether pods may open a connection to pods of another namespace."""
    return _allows(documents, "Egress", source, {}, port, namespace)


def _allows(
    documents: list[Document], way: str, subject: Labels, peer: Labels | str, port: int, peer_namespace: Labels
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


def _is_peer(item: dict[str, Any], peer: Labels | str, namespace: Labels) -> bool:
    if "ipBlock" in item:
        return isinstance(peer, str) and _is_within(peer, item["ipBlock"])
    if isinstance(peer, str):
        return False
    if "namespaceSelector" in item:
        return selects(item["namespaceSelector"], namespace) and selects(item.get("podSelector", {}), peer)
    return namespace == HERE and selects(item["podSelector"], peer)


def _is_within(address: str, block: dict[str, Any]) -> bool:
    networks = [ip_network(text) for text in (block["cidr"], *block.get("except", ()))]
    return [ip_address(address) in network for network in networks] == [True, *[False] * (len(networks) - 1)]
