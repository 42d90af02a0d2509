"""Kueue, KubeRay and the nodes take the Ray cluster: what their schemas do not say."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.deploy.network import selects
from tests.deploy.rendering import RENDERINGS, Document, one, render


def quantity(value: str) -> float:
    """A number of Kubernetes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|Ti)?", value).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}.get(unit, 1)


def unadmitted(documents: list[Document]) -> list[str]:
    """Resources for which Kueue's quota has no room for the head and all workers at once."""
    cluster = one(documents, "RayCluster", "sleddog-ray")
    queue = one(documents, "LocalQueue", cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
    [group] = one(documents, "ClusterQueue", queue["spec"]["clusterQueue"])["spec"]["resourceGroups"]
    of_flavor = {
        flavor["name"]: {item["name"]: quantity(item["nominalQuota"]) for item in flavor["resources"]}
        for flavor in group["flavors"]
    }
    for flavor in of_flavor:
        one(documents, "ResourceFlavor", flavor)
    [workers] = cluster["spec"]["workerGroupSpecs"]
    wanted = (
        ("sleddog-cpu", 1, cluster["spec"]["headGroupSpec"]["template"]),
        ("sleddog-h100", workers["maxReplicas"], workers["template"]),
    )
    found = []
    for flavor, count, template in wanted:
        found += [
            f"{flavor}: {name}"
            for name, value in template["spec"]["containers"][0]["resources"]["requests"].items()
            if name not in group["coveredResources"] or of_flavor[flavor].get(name, 0) < count * quantity(value)
        ]
    return found


@pytest.mark.parametrize("rendering", [rendering for rendering in RENDERINGS if rendering.startswith("32x8")])
def test_kueue_has_room_for_the_whole_cluster(rendering: str) -> None:
    assert unadmitted(render(rendering)) == []


def test_a_quota_that_is_too_small_is_noticed() -> None:
    documents = render("32x8-h100")
    cluster = one(documents, "RayCluster", "sleddog-ray")["spec"]
    cluster["workerGroupSpecs"][0]["maxReplicas"] = 33
    assert unadmitted(documents) == [
        f"sleddog-h100: {name}"
        for name in cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]
    ]


def elastic_faults(documents: list[Document]) -> list[str]:
    """What KubeRay and Kueue refuse beyond their schemas."""
    cluster = one(documents, "RayCluster", "sleddog-ray")
    spec, metadata, found = cluster["spec"], cluster["metadata"], []
    is_elastic = metadata.get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
    is_queued = "kueue.x-k8s.io/queue-name" in metadata.get("labels", {})
    if spec.get("enableInTreeAutoscaling") and is_queued and not is_elastic:
        found.append("Kueue lets only elastic jobs grow")
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    if spec.get("enableInTreeAutoscaling") and any("restartPolicy" in group["template"]["spec"] for group in groups):
        found.append("autoscaler v2 decides about restarts")
    mounts = {
        mount["mountPath"] for mount in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    if spec.get("enableInTreeAutoscaling") and "/tmp/ray" in mounts:
        found.append("KubeRay gives head and autoscaler a common /tmp/ray only where the head has none")
    return found


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_operators_take_the_cluster(rendering: str) -> None:
    assert elastic_faults(render(rendering)) == []


def test_autoscaling_under_kueue_without_the_annotation_is_noticed() -> None:
    documents = render("32x8-h100+autoscaling")
    cluster = one(documents, "RayCluster", "sleddog-ray")
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    del cluster["metadata"]["annotations"]
    assert elastic_faults(documents) == ["Kueue lets only elastic jobs grow"]


def test_a_head_that_shares_nothing_with_its_autoscaler_is_noticed() -> None:
    documents = render("32x8-h100+autoscaling")
    head = one(documents, "RayCluster", "sleddog-ray")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["volumeMounts"].append({"name": "ray", "mountPath": "/tmp/ray"})
    assert len(elastic_faults(documents)) == 1


@pytest.mark.parametrize(("limit", "status"), [("unlimited", 0), ("64", 1)])
def test_a_worker_does_not_start_where_rdma_could_not_pin_memory(limit: str, status: int) -> None:
    for rendering in ("32x8-h100", "32x8-h100+infiniband"):
        [group] = one(render(rendering), "RayCluster", "sleddog-ray")["spec"]["workerGroupSpecs"]
        [check] = group["template"]["spec"]["initContainers"]
        shell = {"BASH_FUNC_ulimit%%": f"() {{ echo {limit}; }}"}
        done = subprocess.run(check["command"], env=os.environ | shell, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert ("only 64 KiB may be locked" in done.stderr) == bool(status)


@pytest.mark.parametrize("rendering", [rendering for rendering in RENDERINGS if rendering.startswith("32x8")])
def test_no_autoscaler_of_nodes_drains_one_that_trains(rendering: str) -> None:
    spec = one(render(rendering), "RayCluster", "sleddog-ray")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        annotations = group["template"]["metadata"]["annotations"]
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@pytest.mark.parametrize("rendering", [rendering for rendering in RENDERINGS if rendering.startswith("32x8")])
def test_workers_are_one_a_node_and_all_in_one_zone(rendering: str) -> None:
    [group] = one(render(rendering), "RayCluster", "sleddog-ray")["spec"]["workerGroupSpecs"]
    given = {"ray.io/cluster": "sleddog-ray", "ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
    labels, spec = group["template"]["metadata"]["labels"] | given, group["template"]["spec"]
    [spread] = spec["topologySpreadConstraints"]
    assert (spread["maxSkew"], spread["topologyKey"]) == (1, "kubernetes.io/hostname")
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    [zone] = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert zone["topologyKey"] == "topology.kubernetes.io/zone"
    assert selects(spread["labelSelector"], labels)
    assert selects(zone["labelSelector"], labels), "else the first worker waits for ever"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]


def test_a_worker_has_all_network_cards_of_its_node() -> None:
    for rendering, card, count in (
        ("32x8-h100", "vpc.amazonaws.com/efa", "32"),
        ("32x8-h100+infiniband", "rdma/hca_shared_devices_a", "1"),
    ):
        [group] = one(render(rendering), "RayCluster", "sleddog-ray")["spec"]["workerGroupSpecs"]
        container = group["template"]["spec"]["containers"][0]
        assert container["resources"]["requests"] == container["resources"]["limits"], (
            "else no huge pages, no pinned CPUs"
        )
        assert container["resources"]["limits"][card] == count
        assert ({"name": "FI_PROVIDER", "value": "efa"} in container["env"]) == (rendering == "32x8-h100")


def test_a_worker_fits_its_node_and_its_shared_memory() -> None:
    [group] = one(render("32x8-h100"), "RayCluster", "sleddog-ray")["spec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert quantity(limits["cpu"]) <= 192, "vCPUs of a p5.48xlarge"
    assert quantity(limits["memory"]) <= 2 * 2**40, "memory of it"
    [shared] = [volume["emptyDir"] for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
    assert shared["medium"] == "Memory"
    assert (
        int(group["rayStartParams"]["object-store-memory"]) < quantity(shared["sizeLimit"]) < quantity(limits["memory"])
    )
