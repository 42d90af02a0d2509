"""Pods may do little, and speak to few."""

from __future__ import annotations

import pytest

from tests.deploy.network import HERE, may_ask, may_leave, may_reach
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


def loose(template: Document) -> list[str]:
    """What Kubernetes' restricted level of pod security would refuse, and root file systems that can be written to."""
    pod, found = template["spec"]["securityContext"], []
    if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
        found.append("may be root")
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    for container in containers_of(template):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            found.append(f"{container['name']} may gain privileges")
        if context.get("capabilities", {}) != {"drop": ["ALL"]}:
            found.append(f"{container['name']} has capabilities")
        if context.get("readOnlyRootFilesystem") is not True and not container["image"].startswith("postgres:"):
            found.append(f"{container['name']} may write anywhere")
    return found


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_pods_keep_the_restricted_level(rendering: str) -> None:
    documents = render(rendering)
    level = one(documents, "Namespace", "sleddog")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "restricted"
    for name, template in pod_templates(documents).items():
        assert not loose(template), name


def test_a_pod_that_may_be_root_is_noticed() -> None:
    template = pod_templates(render("local"))["Deployment/sleddog-control-plane"]
    template["spec"]["securityContext"]["runAsUser"] = 0
    context = template["spec"]["containers"][0]["securityContext"]
    context["capabilities"] = {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    context["readOnlyRootFilesystem"] = False
    assert loose(template) == ["may be root", "control-plane has capabilities", "control-plane may write anywhere"]


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_ray_may_write_where_it_must(rendering: str) -> None:
    for name, template in pod_templates(render(rendering)).items():
        if name.startswith("sleddog-ray/"):
            mounts = template["spec"]["containers"][0]["volumeMounts"]
            assert {"/dev/shm", "/tmp", "/home/sleddog"} <= {mount["mountPath"] for mount in mounts}, name
            assert {mount["name"] for mount in mounts} == {volume["name"] for volume in template["spec"]["volumes"]}


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
    assert not any(may_leave(documents, labels, 80) for labels in (CONTROL_PLANE, MIGRATE, HEAD, WORKER))


def test_names_are_looked_up_and_the_clouds_metadata_is_not(documents: list[Document]) -> None:
    cluster_dns = {"kubernetes.io/metadata.name": "kube-system"}
    for labels in (CONTROL_PLANE, MIGRATE, HEAD, WORKER):
        assert may_ask(documents, labels, 53, cluster_dns)
        assert not may_ask(documents, labels, 443, cluster_dns)
        assert not may_ask(documents, labels, 53, {"kubernetes.io/metadata.name": "other"})
        assert not any(may_leave(documents, labels, port, "169.254.169.254") for port in (80, 443, 5432, 6379))


def test_an_exception_that_is_left_out_is_noticed() -> None:
    documents = render("local")
    for rule in one(documents, "NetworkPolicy", "outside")["spec"]["egress"]:
        del rule["to"][0]["ipBlock"]["except"]
    assert may_leave(documents, WORKER, 443, "169.254.169.254")


def test_only_the_control_plane_reaches_the_database_in_the_cluster() -> None:
    documents, postgres = render("local"), {"app.kubernetes.io/name": "postgres"}
    assert all(may_reach(documents, labels, postgres, 5432) for labels in (CONTROL_PLANE, MIGRATE))
    assert not any(may_reach(documents, labels, postgres, 5432) for labels in (HEAD, WORKER))
    assert not may_leave(documents, postgres, 443)


def test_without_its_policy_ray_is_open() -> None:
    documents = render("local")
    rest = [item for item in documents if item["kind"] != "NetworkPolicy"]
    assert may_reach(rest, {}, HEAD, 8265, {"kubernetes.io/metadata.name": "other"})


def test_pods_have_an_identity_for_storage_and_no_keys() -> None:
    documents = render("32x8-h100")
    for name, template in pod_templates(documents).items():
        if name == "Job/sleddog-migrate":
            continue
        account = one(documents, "ServiceAccount", template["spec"]["serviceAccountName"])
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::"), name
        variables = {item["name"] for container in containers_of(template) for item in container.get("env", ())}
        assert not [variable for variable in variables if variable.startswith("AWS_")], name
    roles = [item["metadata"]["annotations"] for item in documents if item["kind"] == "ServiceAccount"]
    assert len({role["eks.amazonaws.com/role-arn"] for role in roles}) == 2, "the control plane needs less than Ray"


def test_redis_is_reached_where_the_head_keeps_its_memory_there() -> None:
    for rendering in RENDERINGS:
        options = one(render(rendering), "RayCluster", "sleddog-ray")["spec"].get("gcsFaultToleranceOptions", {})
        assert may_leave(render(rendering), HEAD, 6379) == (options.get("backend") == "redis"), rendering
