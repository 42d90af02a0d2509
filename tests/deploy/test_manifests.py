"""The manifests, rendered as a user renders them: valid strictly, consistent within, and hardened."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from service.api.server import GRACE_S
from tests.deploy import commands
from tests.deploy.crd import Definitions
from tests.deploy.network import selects
from tests.deploy.rendering import (
    KUBERNETES,
    RENDERINGS,
    ROOT,
    Document,
    containers_of,
    find_kubectl,
    one,
    pod_templates,
    render,
)
from tests.deploy.strict import RefusedManifestError, validate

CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ResourceFlavor"}
_valid: set[str] = set()
"""Objects that were found valid: renderings have most in common."""


@pytest.fixture(params=RENDERINGS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


def test_every_object_is_valid_and_has_no_unknown_key(documents: list[Document]) -> None:
    for document in documents:
        if (text := json.dumps(document)) not in _valid:
            validate(document)
            _valid.add(text)


def _misspell_probe(documents: list[Document]) -> Document:
    deployment = one(documents, "Deployment", "sleddog-control-plane")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    return deployment


def _misspell_auth(documents: list[Document]) -> Document:
    cluster = one(documents, "RayCluster", "sleddog-ray")
    cluster["spec"]["authOption"] = cluster["spec"].pop("authOptions")
    return cluster


def _misspell_toleration(documents: list[Document]) -> Document:
    cluster = one(documents, "RayCluster", "sleddog-ray")
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["toleration"] = []
    return cluster


def _misspell_quota(documents: list[Document]) -> Document:
    queue = one(documents, "ClusterQueue", "sleddog")
    queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuotas"] = "1"
    return queue


def _misspell_interval(documents: list[Document]) -> Document:
    monitor = one(documents, "ServiceMonitor", "sleddog")
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    return monitor


def _replicas_as_text(documents: list[Document]) -> Document:
    cluster = one(documents, "RayCluster", "sleddog-ray")
    cluster["spec"]["workerGroupSpecs"][0]["replicas"] = "32"
    return cluster


def _quotas_in_another_order(documents: list[Document]) -> Document:
    queue = one(documents, "ClusterQueue", "sleddog")
    queue["spec"]["resourceGroups"][0]["flavors"][1]["resources"].reverse()
    return queue


def _fewer_than_the_least(documents: list[Document]) -> Document:
    cluster = one(documents, "RayCluster", "sleddog-ray")
    cluster["spec"]["workerGroupSpecs"][0]["replicas"] = 31
    return cluster


def _a_volume_beside_redis(documents: list[Document]) -> Document:
    cluster = one(documents, "RayCluster", "sleddog-ray")
    cluster["spec"]["gcsFaultToleranceOptions"]["storage"] = {"size": "10Gi"}
    return cluster


@pytest.mark.parametrize(
    "spoil",
    [
        _misspell_probe,
        _misspell_auth,
        _misspell_toleration,
        _misspell_quota,
        _misspell_interval,
        _replicas_as_text,
        _quotas_in_another_order,
        _fewer_than_the_least,
        _a_volume_beside_redis,
    ],
)
def test_a_spoilt_object_is_refused(spoil: Callable[[list[Document]], Document]) -> None:
    with pytest.raises(RefusedManifestError):
        validate(spoil(render("32x8-h100")))


def test_objects_are_in_the_namespace_if_they_can_be(documents: list[Document]) -> None:
    for document in documents:
        expected = None if document["kind"] in CLUSTER_SCOPED else "sleddog"
        assert document["metadata"].get("namespace") == expected, document["metadata"]["name"]


def missing_references(documents: list[Document], outside: set[str]) -> set[str]:
    """Secrets, settings, accounts and claims that pods name and nobody makes."""
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    named = set()
    for template in pod_templates(documents).values():
        spec = template["spec"]
        if "serviceAccountName" in spec:
            named.add(("ServiceAccount", spec["serviceAccountName"]))
        for container in containers_of(template):
            named |= {("ConfigMap", item["configMapRef"]["name"]) for item in container.get("envFrom", ())}
            for item in container.get("env", ()):
                if "valueFrom" in item:
                    named.add(("Secret", item["valueFrom"]["secretKeyRef"]["name"]))
        for volume in spec.get("volumes", ()):
            if "secret" in volume:
                named.add(("Secret", volume["secret"]["secretName"]))
            if "persistentVolumeClaim" in volume:
                named.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    return {name for kind, name in named - made if not (kind == "Secret" and name in outside)}


def documented_secrets() -> set[str]:
    """Those that the guide tells to create."""
    words = (ROOT / "docs" / "guides" / "deploy.md").read_text().split()
    return {after for before, after in pairwise(words) if before == "generic"}


def test_all_that_pods_name_is_there_or_in_the_guide(documents: list[Document]) -> None:
    assert not missing_references(documents, documented_secrets())


def test_a_secret_that_nobody_tells_of_is_missed() -> None:
    assert missing_references(render("local"), documented_secrets() - {"sleddog-database"}) == {"sleddog-database"}


def test_secrets_are_references_only(documents: list[Document]) -> None:
    assert not [document for document in documents if document["kind"] == "Secret"]
    names = {secret for secret in documented_secrets() if secret.startswith("sleddog-")}
    cluster = one(documents, "RayCluster", "sleddog-ray")["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sleddog-ray-token"}
    assert "sleddog-ray-token" in names


def check_sleddog(container: Document, settings: dict[str, str]) -> dict[str, object]:
    """Options of a container of the control plane, all of which are real."""
    arguments = container["args"]
    names = {item["name"] for item in container.get("env", ())}
    names |= settings.keys() if "envFrom" in container else set()
    unknown = {name for name in names if name.startswith("SLEDDOG_")} - commands.variables(arguments[0])
    assert not unknown, f"sleddog {arguments[0]} reads no {unknown}"
    return dict(commands.parse(arguments))


def test_commands_and_variables_of_the_control_plane_exist(documents: list[Document]) -> None:
    [settings] = [item["data"] for item in documents if item["metadata"]["name"].startswith("sleddog-settings")]
    found = {}
    for template in pod_templates(documents).values():
        for container in containers_of(template):
            if "sleddog/control-plane" in container["image"] and "args" in container:
                found[container["name"]] = check_sleddog(container, settings)
    assert found.keys() == {"control-plane", "migrate"}
    assert found["control-plane"]["host"] == "0.0.0.0"
    assert settings.keys() == {"SLEDDOG_RAY_DASHBOARD_URL", "SLEDDOG_RUNS_URL"}


@pytest.mark.parametrize(
    "container",
    [
        {"args": ["serve", "--cluster-gpu=256"]},
        {"args": ["serve", "--cluster-gpus=many"]},
        {"args": ["server"]},
        {"args": ["serve"], "env": [{"name": "SLEDDOG_RUN_URL"}]},
    ],
)
def test_a_command_or_variable_that_does_not_exist_is_noticed(container: Document) -> None:
    with pytest.raises(Exception, match=r"cluster-gpu|valid number|no command|RUN_URL"):
        check_sleddog(container, {})


def test_selectors_select_the_pods_that_they_mean(documents: list[Document]) -> None:
    pods = [template["metadata"]["labels"] for template in pod_templates(documents).values()]
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] in ("Deployment", "StatefulSet"):
            assert selects(spec["selector"], spec["template"]["metadata"]["labels"])
        if document["kind"] == "PodDisruptionBudget":
            assert [selects(spec["selector"], labels) for labels in pods].count(True) == 1
        if document["kind"] == "Service":
            assert [selects({"matchLabels": spec["selector"]}, labels) for labels in pods].count(True) == 1


def test_service_is_monitored_at_a_port_that_it_has() -> None:
    documents = render("32x8-h100")
    monitor = one(documents, "ServiceMonitor", "sleddog")["spec"]
    service = one(documents, "Service", "sleddog")
    assert selects(monitor["selector"], service["metadata"]["labels"])
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert monitor["endpoints"][0]["authorization"]["credentials"]["name"] in documented_secrets()
    for name, template in pod_templates(documents).items():
        if name.startswith("sleddog-ray/"):
            assert {"name": "metrics", "containerPort": 8080} in template["spec"]["containers"][0]["ports"]


def test_nodes_of_ray_are_monitored_at_a_port_that_they_have() -> None:
    documents = render("32x8-h100")
    monitor = one(documents, "PodMonitor", "sleddog-ray")["spec"]
    assert selects(
        monitor["selector"], {"ray.io/cluster": one(documents, "RayCluster", "sleddog-ray")["metadata"]["name"]}
    )
    [endpoint] = monitor["podMetricsEndpoints"]
    for name, template in pod_templates(documents).items():
        if name.startswith("sleddog-ray/"):
            ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
            assert endpoint["port"] in ports, name


def test_the_control_plane_finds_rays_head(documents: list[Document]) -> None:
    [settings] = [item["data"] for item in documents if item["metadata"]["name"].startswith("sleddog-settings")]
    cluster = one(documents, "RayCluster", "sleddog-ray")
    ports = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    [port] = [item["containerPort"] for item in ports if item["name"] == "dashboard"]
    service = f"{cluster['metadata']['name']}-head-svc"  # KubeRay's name for it
    assert settings["SLEDDOG_RAY_DASHBOARD_URL"] == f"http://{service}:{port}"


def test_requests_come_in_where_the_control_plane_listens(documents: list[Document]) -> None:
    container = one(documents, "Deployment", "sleddog-control-plane")["spec"]["template"]["spec"]["containers"][0]
    [port] = container["ports"]
    assert port["containerPort"] == commands.parse(container["args"])["port"]
    assert {item["targetPort"] for item in one(documents, "Service", "sleddog")["spec"]["ports"]} == {port["name"]}


def test_the_schema_is_migrated_ahead_of_the_rest(documents: list[Document]) -> None:
    annotations = one(documents, "Job", "sleddog-migrate")["metadata"]["annotations"]
    assert annotations["argocd.argoproj.io/hook"] == "PreSync"
    assert annotations["argocd.argoproj.io/hook-delete-policy"] == "BeforeHookCreation"


def test_alerts_and_dashboards_are_those_of_the_observed_files() -> None:
    documents, observe = render("32x8-h100"), ROOT / "deploy" / "observe"
    rules = yaml.safe_load((observe / "alerts.yaml").read_text())
    assert one(documents, "PrometheusRule", "sleddog")["spec"] == rules, "run deploy/kubernetes/alerts.py"
    shown = {
        name: text
        for document in documents
        if document["metadata"].get("labels", {}).get("grafana_dashboard")
        for name, text in document["data"].items()
    }
    assert shown == {path.name: path.read_text() for path in (observe / "grafana" / "dashboards").glob("*.json")}


def test_a_control_plane_of_several_replicas_survives_one_node() -> None:
    documents = render("32x8-h100")
    spec = one(documents, "Deployment", "sleddog-control-plane")["spec"]
    assert spec["replicas"] >= 2
    assert one(documents, "PodDisruptionBudget", "sleddog-control-plane")["spec"]["maxUnavailable"] < spec["replicas"]
    container = spec["template"]["spec"]["containers"][0]
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"/healthz"}, "a Ray that is away takes no replica away"
    pause, grace = container["lifecycle"]["preStop"]["sleep"]["seconds"], spec["template"]["spec"]
    assert 0 < pause < grace["terminationGracePeriodSeconds"] - GRACE_S
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts["/var/lib/sleddog"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_definition_of_a_custom_resource_finds_unknown_keys_and_broken_rules() -> None:
    rule = {"rule": "self.least <= self.most", "message": "least is more than most"}
    update = {"rule": "self == oldSelf", "message": "never changes"}
    number = {"type": "integer"}
    spec = {
        "type": "object",
        "properties": {"least": number, "most": number},
        "x-kubernetes-validations": [rule, update],
    }
    definition: Document = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "example.org",
            "names": {"kind": "Range"},
            "versions": [
                {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}
            ],
        },
    }
    definitions = Definitions([definition])

    def faults(spec: Document) -> list[str] | None:
        return definitions.faults({"apiVersion": "example.org/v1", "kind": "Range", "metadata": {}, "spec": spec})

    assert faults({"least": 1, "most": 2}) == []
    assert faults({"least": 3, "most": 2}) == ["$.spec: least is more than most"]
    assert "unexpected" in str(faults({"least": 1, "most": 2, "middle": 1}))
    assert "not of type" in str(faults({"least": "1", "most": 2}))
    assert definitions.faults({"apiVersion": "example.org/v1", "kind": "Other"}) is None


def test_an_old_kubectl_is_not_taken(tmp_path: Path) -> None:
    program = tmp_path / "kubectl"
    for minor, expected in (("20", None), ("27+", str(program))):
        program.write_text(f'#!/bin/sh\necho \'{{"clientVersion": {{"minor": "{minor}"}}}}\'\n')
        program.chmod(0o755)
        assert find_kubectl(str(tmp_path)) == expected
    assert find_kubectl(str(tmp_path / "none")) is None


def test_every_component_is_rendered() -> None:
    components = {path.name for path in (KUBERNETES / "components").iterdir()} - {"monitoring"}
    assert {rendering.partition("+")[2] for rendering in RENDERINGS} - {""} == components
