"""Pods may do little, and speak to few."""

from __future__ import annotations

import pytest

from tests.deploy.network import HERE, may_leave, may_reach
from tests.deploy.rendering import RENDERINGS, Document, containers_of, one, pod_templates, render

HEAD = {
    "app.kubernetes.io/name": "sleddog",
    "app.kubernetes.io/component": "ray-head",
    "ray.io/cluster": "sleddog-ray",
    "ray.io/node-type": "head",
}
WORKER = {**HEAD, "app.kubernetes.io/component": "ray-worker", "ray.io/node-type": "worker"}
CONTROL_PLANE = {"app.kubernetes.io/name": "sleddog", "app.kubernetes.io/component": "control-plane"}
MIGRATE = {"app.kubernetes.io/name": "sleddog", "app.kubernetes.io/component": "migrate"}


@pytest.fixture(params=RENDERINGS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


def loose(template: Document, *, may_add: set[str]) -> list[str]:
    """What Kubernetes' restricted level of pod security would refuse."""
    pod, found = template["spec"]["securityContext"], []
    if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
        found.append("may be root")
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    for container in containers_of(template):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            found.append(f"{container['name']} may gain privileges")
        capabilities = context.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", ())) - may_add:
            found.append(f"{container['name']} has capabilities")
    return found


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_pods_keep_the_restricted_level(rendering: str) -> None:
    documents = render(rendering)
    pinned_memory = {"IPC_LOCK"} if rendering.endswith("infiniband") else set()
    level = one(documents, "Namespace", "sleddog")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == ("privileged" if pinned_memory else "restricted")
    for name, template in pod_templates(documents).items():
        assert not loose(template, may_add=pinned_memory), name


def test_a_pod_that_may_be_root_is_noticed() -> None:
    template = pod_templates(render("local"))["Deployment/sleddog-control-plane"]
    template["spec"]["securityContext"]["runAsUser"] = 0
    template["spec"]["containers"][0]["securityContext"]["capabilities"] = {"add": ["SYS_ADMIN"]}
    assert loose(template, may_add=set()) == ["may be root", "control-plane has capabilities"]


def test_only_who_must_reaches_whom(documents: list[Document]) -> None:
    client = {**HERE, "kubernetes.io/metadata.name": "ingress", "sleddog.dev/client": "true"}
    stranger = {"kubernetes.io/metadata.name": "other"}
    assert may_reach(documents, CONTROL_PLANE, HEAD, 8265)
    assert may_reach(documents, WORKER, HEAD, 6379)
    assert may_reach(documents, HEAD, WORKER, 30000)
    assert may_reach(documents, {}, CONTROL_PLANE, 8700, client)
    assert may_reach(documents, {}, WORKER, 8080, client)
    assert all(may_leave(documents, labels, 443) for labels in (CONTROL_PLANE, HEAD, WORKER))
    assert all(may_leave(documents, labels, 5432) for labels in (CONTROL_PLANE, MIGRATE))

    assert not may_reach(documents, CONTROL_PLANE, WORKER, 8265)
    assert not may_reach(documents, CONTROL_PLANE, HEAD, 6379)
    assert not may_reach(documents, WORKER, CONTROL_PLANE, 8700)
    assert not may_reach(documents, {}, HEAD, 8265, client)
    assert not may_reach(documents, {}, CONTROL_PLANE, 8700, stranger)
    assert not may_reach(documents, {"app.kubernetes.io/name": "other"}, HEAD, 8265)
    assert not may_leave(documents, WORKER, 5432)
    assert not may_leave(documents, MIGRATE, 443)


def test_without_its_policy_ray_is_open() -> None:
    documents = render("local")
    rest = [item for item in documents if item["kind"] != "NetworkPolicy"]
    assert may_reach(rest, {}, HEAD, 8265, {"kubernetes.io/metadata.name": "other"})


def test_redis_is_reached_where_the_head_keeps_its_memory_there() -> None:
    for rendering in RENDERINGS:
        options = one(render(rendering), "RayCluster", "sleddog-ray")["spec"].get("gcsFaultToleranceOptions", {})
        assert may_leave(render(rendering), HEAD, 6379) == (options.get("backend") == "redis"), rendering
