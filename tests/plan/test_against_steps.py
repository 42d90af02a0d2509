"""The plan's arithmetic, checked by the code that it is about: real training steps, counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.client.spec_file import load_spec
from service.plan.communication import plan_communication
from service.plan.layout import Layout, planned_config
from service.plan.memory import head_gradient_bytes, plan_memory
from service.spec.job import JobSpec
from service.spec.plan import PlanRequest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ARCTIC = HERE.parents[1] / "examples" / "arctic.yaml"
EVEN = {"expert_load": 1.0, "reserved_memory_gb": 0.0}
"""Experts are loaded evenly where nothing is routed, and the process itself is not what is counted."""

WITHIN = 0.02
SMALLEST_MESSAGE = 1_000_000
"""Bytes; the plan leaves out what is smaller."""


def request_for(spec: JobSpec) -> PlanRequest:
    return PlanRequest.model_validate({"job": spec.model_dump(mode="json"), "assumptions": EVEN})


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def count(spec: JobSpec, directory: Path, *options: str) -> dict[str, Any]:
    """What `fake_run.py` counts."""
    (directory / "spec.json").write_text(spec.model_dump_json())
    counted = run(str(HERE / "fake_run.py"), str(directory / "spec.json"), *options).splitlines()[-1]
    return json.loads(counted)  # type: ignore[no-any-return]


def stated(layout: Layout, request: PlanRequest) -> dict[str, int]:
    """The plan's bytes, when the loss is there, and with it the head's gradients."""
    memory = plan_memory(layout, request)
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations": memory.activations_kept + head_gradient_bytes(layout, request),
    }


@pytest.mark.timeout(900)
def test_arctic_on_256_gpus_is_what_its_step_on_fake_tensors_takes(tmp_path: Path) -> None:
    spec = load_spec(ARCTIC)
    counted = count(spec, tmp_path)
    request, layout = request_for(spec), Layout.of(spec)
    memory = plan_memory(layout, request)
    assert stated(layout, request) == pytest.approx(counted["bytes"], rel=WITHIN)
    other = Layout.of(
        spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"expert_parallel_size": 64})})
    )
    assert plan_memory(other, request).weights != pytest.approx(counted["bytes"]["weights"], rel=WITHIN)
    # what is not all alive at once is added up all the same, so the plan may be above, and is not to be below
    assert counted["peak_bytes"] <= memory.total <= (1 + WITHIN) * counted["peak_bytes"]

    calls: Counter[tuple[str, int]] = Counter()
    sent: Counter[tuple[str, int]] = Counter()
    for kind, num_bytes, ranks in counted["collectives"]:
        if num_bytes >= SMALLEST_MESSAGE:
            calls[kind, len(ranks)] += 1
            sent[kind, len(ranks)] += num_bytes
    planned = plan_communication(layout, request)
    names = {one.kind.replace("_", ""): one.kind for one in planned}
    assert {(names[kind], size): number for (kind, size), number in calls.items()} == {
        # the norms' weights, half a megabyte, are the second of the dense part
        (one.kind, one.group_size): one.calls - (one.kind == "all_gather" and one.group_size == 256)
        for one in planned
    }
    assert {(names[kind], size): number for (kind, size), number in sent.items()} == pytest.approx(
        {(one.kind, one.group_size): one.bytes for one in planned}, rel=WITHIN
    )
    spread = {len(ranks): ranks for _, _, ranks in counted["collectives"]}
    assert spread[128] == list(range(128, 256)), "whole nodes"
    assert spread[2] == [127, 255], "in different nodes"


def test_two_layers_without_recomputation_and_frozen_experts(tmp_path: Path) -> None:
    spec = load_spec(ARCTIC)
    train = spec.train.model_copy(update={"activation_checkpointing": False, "tuning": "frozen_moe"})
    spec = spec.model_copy(update={"train": train})
    counted = count(spec, tmp_path, "--layers", "2")
    layout = Layout(spec, replace(planned_config(spec), num_layers=2))
    assert stated(layout, request_for(spec)) == pytest.approx(counted["bytes"], rel=WITHIN)


@pytest.mark.parametrize(
    ("expert_parallel", "precision", "recompute"), [(2, "bf16", False), (1, "fp32", True)], ids=["shared", "replicated"]
)
def test_a_small_model_takes_what_is_planned(
    expert_parallel: int, precision: str, recompute: bool, job_document: dict[str, Any], tmp_path: Path
) -> None:
    job_document["data"]["sequence_length"] = 512
    job_document["train"] |= {"precision": precision, "activation_checkpointing": recompute}
    job_document["parallel"]["expert_parallel_size"] = expert_parallel
    spec = JobSpec.model_validate(job_document)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(*launcher, str(HERE / "measured_run.py"), str(tmp_path / "spec.json"), str(tmp_path))
    measured = [json.loads((tmp_path / f"measured-{rank}.json").read_text()) for rank in range(2)]
    request, layout = request_for(spec), Layout.of(spec)
    memory, planned = plan_memory(layout, request), stated(layout, request)
    buckets = [one.pop("buckets") for one in measured]
    mean = {name: sum(one[name] for one in measured) / 2 for name in planned}
    assert planned == pytest.approx(mean, rel=0.1)
    trained = layout.num_dense_trained + layout.num_expert_trained
    assert buckets == [memory.communication_buffers - layout.number_bytes * trained] * 2
