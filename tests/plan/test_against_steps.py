"""The plan's arithmetic, checked by the code that it is about: real training steps, counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from moe.config import Tuning
from moe.freeze import freeze
from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.train.batches import collate
from ray_jobs.train.engine import TrainingStep
from service.client.spec_file import load_spec
from service.plan.communication import plan_communication
from service.plan.layout import Layout, planned_config
from service.plan.memory import head_gradient_bytes, plan_memory
from service.spec.job import JobSpec
from service.spec.plan import PlanRequest
from tests.moe.kept import bytes_kept
from tests.plan import measured_run
from tests.plan.measured_run import full_row
from tests.processes import run_processes

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


def with_train(spec: JobSpec, **fields: Any) -> JobSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=fields)})


def count(specs: Sequence[JobSpec], directory: Path, *options: str) -> list[dict[str, Any]]:
    """What `fake_run.py` counts, of each."""
    paths = [directory / f"spec-{number}.json" for number in range(len(specs))]
    for spec, path in zip(specs, paths, strict=True):
        path.write_text(spec.model_dump_json())
    command = [sys.executable, str(HERE / "fake_run.py"), *map(str, paths), *options]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(specs) :]]


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
    [counted] = count([spec], tmp_path)
    request, layout = request_for(spec), Layout.of(spec)
    memory = plan_memory(layout, request)
    assert stated(layout, request) == pytest.approx(counted["bytes"], rel=WITHIN)
    other = Layout.of(
        spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"expert_parallel_size": 64})})
    )
    assert plan_memory(other, request).weights != pytest.approx(counted["bytes"]["weights"], rel=WITHIN)
    # what is not all alive at once is added up all the same, so the plan may be above, and is not to be below
    assert counted["peak_bytes"] <= memory.total <= (1 + WITHIN) * counted["peak_bytes"]

    assert_communication_is_planned(counted, layout, request, small={("all_gather", 256): 1})  # norms' weights
    spread = {len(ranks): ranks for _, _, ranks in counted["collectives"]}
    assert spread[128] == list(range(128, 256)), "whole nodes"
    assert spread[2] == [127, 255], "in different nodes"


def assert_communication_is_planned(
    counted: dict[str, Any], layout: Layout, request: PlanRequest, small: dict[tuple[str, int], int]
) -> None:
    """Calls are equal and bytes within the tolerance, by kind and size of the group.

    Args:
        counted: from `count`.
        layout: the job's.
        request: its.
        small: calls planned that have less than the smallest message.
    """
    calls: Counter[tuple[str, int]] = Counter(small)
    sent: Counter[tuple[str, int]] = Counter()
    planned = plan_communication(layout, request)
    names = {kind.replace("_", ""): kind for kind in ("all_to_all", "all_reduce", "all_gather")}
    for kind, num_bytes, ranks in counted["collectives"]:
        if num_bytes >= SMALLEST_MESSAGE:
            calls[names[kind], len(ranks)] += 1
            sent[names[kind], len(ranks)] += num_bytes
    assert calls == {(one.kind, one.group_size): one.calls for one in planned}
    assert sent == pytest.approx(
        {(one.kind, one.group_size): one.bytes for one in planned if (one.kind, one.group_size) in sent}, rel=WITHIN
    )


def test_two_layers_without_recomputation_and_with_frozen_parts(tmp_path: Path) -> None:
    modes: tuple[Tuning, ...] = ("frozen_moe", "router_only")
    specs = [with_train(load_spec(ARCTIC), activation_checkpointing=False, tuning=tuning) for tuning in modes]
    counted_of_modes = dict(zip(modes, count(specs, tmp_path, "--layers", "2"), strict=True))
    for tuning, spec in zip(modes, specs, strict=True):
        layout, counted = Layout(spec, replace(planned_config(spec), num_layers=2)), counted_of_modes[tuning]
        assert stated(layout, request_for(spec)) == pytest.approx(counted["bytes"], rel=WITHIN), tuning
        # updated weights: those of norms, or half a megabyte of routers'
        assert_communication_is_planned(counted, layout, request_for(spec), small={("all_gather", 256): 1})


@pytest.mark.parametrize("tuning", get_args(Tuning))
def test_what_a_small_model_keeps_is_planned(tuning: Tuning, job_document: dict[str, Any]) -> None:
    job_document["data"]["sequence_length"] = 512
    job_document["parallel"] = {"accelerator": "cpu"}
    spec = with_train(JobSpec.model_validate(job_document), precision="bf16", tuning=tuning)
    layout, request = Layout.of(spec), request_for(spec)
    model = HybridModel(layout.config).bfloat16()
    initialize(model, seed=0)
    freeze(model, tuning)
    batch = collate([full_row(512, layout.config.vocab_size, 0)], ["c"], "cpu")
    step = TrainingStep(model, 0.01, 1)
    planned, kept = stated(layout, request)["activations"], bytes_kept(model, lambda: step(batch, 1.0, 1.0))
    # the rest is bookkeeping, less than one of the hidden states that a layer keeps
    hidden_states = layout.config.num_layers * layout.num_tokens * layout.config.hidden_size * layout.number_bytes
    assert planned <= kept < planned + 0.7 * hidden_states


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
    run_processes(measured_run.work, spec.model_dump_json(), tmp_path, number=2)
    measured = [json.loads((tmp_path / f"measured-{rank}.json").read_text()) for rank in range(2)]
    request, layout = request_for(spec), Layout.of(spec)
    memory, planned = plan_memory(layout, request), stated(layout, request)
    buckets = [one.pop("buckets") for one in measured]
    mean = {name: sum(one[name] for one in measured) / 2 for name in planned}
    assert planned == pytest.approx(mean, rel=0.1)
    trained = layout.num_dense_trained + layout.num_expert_trained
    assert buckets == [memory.communication_buffers - layout.number_bytes * trained] * 2
