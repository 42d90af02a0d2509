"""Versions in images, manifests, lock and guide agree; so do the plan of Arctic, its worker group and its guide."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from deploy.images import pins
from service.client.spec_file import load_spec, plan_request
from service.plan.plan import plan_job
from service.spec.plan import Plan
from tests.deploy import commands
from tests.deploy.rendering import OVERLAYS, RENDERINGS, ROOT, containers_of, one, pod_templates, render

LOCK = {name: line.partition("==")[2] for name, line in pins.read_pins(ROOT / "requirements.lock").items()}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
GUIDES = ROOT / "docs" / "guides"


def stale_texts() -> dict[str, set[str]]:
    """By file: versions that are told there."""
    images, compose = ROOT / "deploy" / "images", ROOT / "deploy" / "compose" / "compose.yaml"
    overlays = ROOT / "deploy" / "kubernetes" / "overlays"
    found = {
        path.name: set(re.findall(r"ARG VERSION=(\S+)|sleddog/[\w-]+:([\d.]+\d)|VERSION=([\d.]+) ", path.read_text()))
        for path in (*images.glob("*.Dockerfile"), compose, GUIDES / "deploy.md")
    }
    told = {name: {part for match in matches for part in match if part} for name, matches in found.items()}
    for overlay in OVERLAYS:
        document = yaml.safe_load((overlays / overlay / "kustomization.yaml").read_text())
        told[overlay] = {image["newTag"] for image in document["images"]}
    return told


def test_our_images_have_the_projects_version_everywhere() -> None:
    assert all(versions == {VERSION} for versions in stale_texts().values()), stale_texts()


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_every_image_of_ours_is_tagged(rendering: str) -> None:
    documents = render(rendering)
    for template in pod_templates(documents).values():
        for container in containers_of(template):
            if "sleddog/" in container["image"]:
                assert container["image"].endswith(f":{VERSION}"), container["image"]


def test_ray_is_the_locks_in_cluster_and_guide() -> None:
    for rendering in RENDERINGS:
        assert one(render(rendering), "RayCluster", "sleddog-ray")["spec"]["rayVersion"] == LOCK["ray"]
    guide = re.sub(r"\s+", " ", (GUIDES / "deploy.md").read_text())
    told = dict(re.findall(r"\b(PyTorch|Ray|DeepSpeed) (\d+\.\d+\.\d+)", guide))
    assert told == {"PyTorch": LOCK["torch"], "Ray": LOCK["ray"], "DeepSpeed": LOCK["deepspeed"]}


def cuda_releases() -> dict[str, set[str]]:
    """Of the base images, and of the libraries that PyTorch is pinned to."""
    images = ROOT / "deploy" / "images"
    text = (images / "ray.Dockerfile").read_text()
    toolkit = pins.read_pins(images / "cuda.txt")["cuda-toolkit"].partition("==")[2]
    return {
        "bases": set(re.findall(r"^FROM nvidia/cuda:(\d+\.\d+\.\d+)-", text, re.MULTILINE)),
        "libraries": {toolkit.removesuffix(".0")},
    }


def test_cuda_is_the_same_in_bases_and_libraries() -> None:
    releases = cuda_releases()
    assert releases["bases"] == releases["libraries"]
    assert f"CUDA {releases['bases'].pop().rpartition('.')[0]}" in (GUIDES / "deploy.md").read_text()


def test_libraries_of_cuda_are_those_of_the_pinned_pytorch() -> None:
    head = (ROOT / "deploy" / "images" / "cuda.txt").read_text().partition("\n")[0]
    assert f" torch {LOCK['torch']} " in head, "look up what that torch needs, and say so"


def test_images_of_others_are_the_same_in_compose_and_manifests() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())["services"]
    composed = {service["image"] for service in services.values()}
    for rendering in RENDERINGS:
        for template in pod_templates(render(rendering)).values():
            for container in containers_of(template):
                assert "sleddog/" in container["image"] or container["image"] in composed, container["image"]


def test_the_operator_that_the_guide_installs_is_the_one_that_it_names() -> None:
    guide = (GUIDES / "deploy.md").read_text()
    named = set(re.findall(r"\[KubeRay\]\([^)]*\) (\d+\.\d+)", guide))
    assert set(re.findall(r"kuberay-helm/ --version (\d+\.\d+)\.\d+", guide)) == named == {"1.7"}


def test_pythons_are_those_that_the_tests_run_on() -> None:
    for path in (ROOT / "deploy" / "images").glob("*.Dockerfile"):
        assert set(re.findall(r"^FROM python:(\d+\.\d+)\.\d+-", path.read_text(), re.MULTILINE)) == {"3.11"}
    assert "PYTHON ?= python3.11" in (ROOT / "Makefile").read_text()


def arctic_plan() -> Plan:
    """By the command that plan and guide give."""
    data = {"data": {"num_tokens": 800_000_000, "num_examples": 1_400_000}, "price_per_gpu_hour": 2.5}
    return plan_job(plan_request(load_spec(ROOT / "examples" / "arctic.yaml"), data, []))


def disagreements(plan: Plan, cluster: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    """Between the plan of Arctic 480B, the worker group and what the control plane is told."""
    [group] = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"])
    found = []
    if {group["replicas"], group["minReplicas"], group["maxReplicas"]} != {plan.nodes}:
        found.append("nodes")
    if gpus != plan.hardware.gpus_per_node:
        found.append("GPUs of a node")
    if flags["cluster_gpus"] != group["replicas"] * gpus or flags["cluster_gpus"] != plan.gpus:
        found.append("GPUs")
    if flags["cluster_cpus"] != group["replicas"] * int(limits["cpu"]):
        found.append("CPUs")
    return found


def arctic_cluster() -> tuple[dict[str, Any], dict[str, Any]]:
    documents = render("32x8-h100")
    deployment = one(documents, "Deployment", "sleddog-control-plane")
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return one(documents, "RayCluster", "sleddog-ray")["spec"], dict(commands.parse(arguments))


def test_plan_worker_group_and_flags_agree() -> None:
    assert disagreements(arctic_plan(), *arctic_cluster()) == []


def test_another_number_of_nodes_or_gpus_is_noticed() -> None:
    plan, (cluster, flags) = arctic_plan(), arctic_cluster()
    cluster["workerGroupSpecs"][0]["replicas"] = 31
    assert disagreements(plan, cluster, flags) == ["nodes", "GPUs", "CPUs"]
    cluster, flags = arctic_cluster()
    assert disagreements(plan, cluster, {**flags, "cluster_gpus": 128.0}) == ["GPUs"]


def test_guide_tells_what_the_plan_tells() -> None:
    plan, guide = arctic_plan(), (GUIDES / "arctic.md").read_text()
    parallel = load_spec(ROOT / "examples" / "arctic.yaml").parallel
    assert plan.fits
    assert plan.run is not None
    assert f"{plan.nodes} \N{MULTIPLICATION SIGN} {plan.hardware.gpus_per_node} = {plan.gpus}" in guide
    assert f"| {parallel.expert_parallel_size}: one of Arctic's" in guide
    assert f"{plan.memory.total / 1e9:.2f} GB of {plan.memory.available / 1e9:.2f} GB" in guide
    assert f"| {plan.run.steps:,} |" in guide
    assert f"{plan.run.hours:.2f} hours, {plan.run.gpu_hours:.1f} GPU hours" in guide
    assert f"{plan.data.checkpoint_bytes / 1e9:,.0f} GB" in guide
    assert f"num_workers: {parallel.num_workers}, expert_parallel_size: {parallel.expert_parallel_size}," in guide
