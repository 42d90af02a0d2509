"""The plan as arithmetic: against numbers worked out by hand, and the same by every way to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe.config import MoEConfig
from service.client.spec_file import load_spec
from service.errors import InvalidSpecError
from service.plan.communication import Group
from service.plan.layout import planned_config
from service.plan.plan import plan_job
from service.spec.job import JobSpec
from service.spec.plan import HARDWARE, HardwareSpec, Plan, PlanRequest
from tests.conftest import set_at
from tests.plan.arctic import ARCTIC, arctic


def collectives(plan: Plan) -> dict[str, Any]:
    return {one.purpose: one for one in plan.communication}


def test_arctic_at_the_recipes_scale() -> None:
    plan = plan_job(arctic(data__num_tokens=800_000_000, data__num_examples=1_400_000, price_per_gpu_hour=2.0))
    assert plan.fits
    assert (plan.nodes, plan.gpus) == (32, 256)
    # RECIPE: 9.96B dense parameters, one expert of each layer 3.66B, both in bf16
    assert plan.memory.weights == pytest.approx(2 * (9.96e9 + 0.03e9 + 3.66e9), rel=0.001)
    # dense state over 256 GPUs, expert state over 2
    assert plan.memory.optimiser == pytest.approx(12 * (9.99e9 / 256 + 3.66e9 / 2), rel=0.001)
    assert plan.run is not None
    assert plan.run.steps == -(-2 * plan.run.rows // 256)  # type: ignore[operator]
    assert plan.run.gpu_hours == pytest.approx(256 * plan.run.steps * plan.step.step_s / 3600)
    assert plan.run.cost == pytest.approx(2 * plan.run.gpu_hours)
    assert plan.step.shortest_step_s < plan.step.step_s == plan.step.compute_s + plan.step.communication_s
    # 6 operations a parameter and token, embeddings and untrained positions left out, attention on top
    operations = 6 * (plan.num_active_params - 32_000 * 7168) * 4096
    assert plan.step.model_flops_utilisation == pytest.approx(operations / plan.step.step_s / 989.4e12, rel=0.02)
    assert plan.data.checkpoint_bytes == 12 * plan.num_params


@pytest.mark.parametrize(
    ("size", "distance", "ring", "direct"),
    [
        (8, 1, (14, 0), (7, 0)),
        (128, 1, (14 * 7 / 8, 14 / 8), (8 * 7 / 128, 8 * 120 / 128)),
        (2, 128, (0, 14), (0, 4)),
        (4, 2, (14, 0), (6, 0)),
    ],
)
def test_bytes_stay_in_the_node_or_leave_it(
    size: int, distance: int, ring: tuple[float, float], direct: tuple[float, float]
) -> None:
    group = Group.spread(size, distance, gpus_per_node=8)
    assert group.ring(14) == pytest.approx(ring)
    assert group.direct(8) == pytest.approx(direct)


def test_one_node_uses_no_network_and_one_gpu_nothing() -> None:
    one_node = plan_job(arctic(hardware__gpus_per_node=256))
    assert all(one.network_bytes == 0 for one in one_node.communication)
    alone = {"num_workers": 1, "expert_parallel_size": 1}
    assert plan_job(arctic(job__parallel=alone)).communication == []


def test_replicas_of_all_experts_reduce_one_gradient() -> None:
    plan = plan_job(arctic(job__parallel__expert_parallel_size=1))
    assert set(collectives(plan)) == {"gradients, all", "updated weights, all"}
    assert collectives(plan)["gradients, all"].bytes == 2 * plan.num_params


def test_recomputation_and_accumulation_repeat_what_they_repeat() -> None:
    once = plan_job(arctic())
    kept = plan_job(arctic(job__train__activation_checkpointing=False))
    twice = plan_job(arctic(job__train__global_batch_rows=512))
    dispatch = "tokens to experts and back"
    assert collectives(once)[dispatch].calls == 35 * 2 * 3
    assert collectives(kept)[dispatch].calls == 35 * 2 * 2
    assert kept.step.compute.recomputation_s == 0
    assert collectives(twice)[dispatch].bytes == 2 * collectives(once)[dispatch].bytes
    for purpose, factor in (("gradients, dense", 2), ("updated weights, dense", 1)):
        assert collectives(twice)[purpose].bytes == factor * collectives(once)[purpose].bytes
    assert twice.memory == once.memory
    assert twice.step.tokens == pytest.approx(2 * once.step.tokens, abs=1)


def test_frozen_experts_have_no_gradients_anywhere() -> None:
    plan = plan_job(arctic(job__train__tuning="frozen_moe"))
    assert "gradients, expert" not in collectives(plan)
    assert plan.memory.optimiser == 12 * (MoEConfig().num_dense_params() // 256)
    assert plan.step.compute.experts_s == pytest.approx(plan_job(arctic()).step.compute.experts_s * 2 / 3)


def test_router_only_tuning_goes_back_through_all_layers_but_the_first() -> None:
    full, plan = plan_job(arctic()), plan_job(arctic(job__train__tuning="router_only"))
    assert plan.memory.optimiser == 12 * (MoEConfig().num_router_params() // 256)
    assert plan.data.checkpoint_bytes == 12 * MoEConfig().num_router_params()
    assert collectives(plan)["gradients, dense"].bytes == 2 * MoEConfig().num_router_params()
    dispatch = "tokens to experts and back"
    assert collectives(plan)[dispatch].calls == 2 * (35 + 35 + 34)
    # forward, and back once where full tuning goes back twice
    passes = 1 + 34 / 35
    assert plan.step.compute.experts_s == pytest.approx(full.step.compute.experts_s * passes / 3)
    assert plan.step.compute.head_s == pytest.approx(full.step.compute.head_s * 2 / 3)
    assert passes / 3 < plan.step.compute.attention_and_mlp_s / full.step.compute.attention_and_mlp_s < 1
    assert plan.step.compute.recomputation_s == full.step.compute.recomputation_s


def test_what_does_not_fit_is_told_what_to_change() -> None:
    too_much = {"job__train__activation_checkpointing": False, "job__parallel__expert_parallel_size": 64}
    plan = plan_job(arctic(**too_much))
    assert not plan.fits
    assert plan.changes[0].fields == {"train.activation_checkpointing": True}
    for change in plan.changes:
        document = arctic(**too_much).model_dump(mode="json")
        for path, value in change.fields.items():
            set_at(document, f"job.{path}", value)
        changed = plan_job(PlanRequest.model_validate(document))
        assert (changed.fits, changed.memory.total) == (change.fits, change.total_bytes)
    assert plan_job(arctic()).changes == []


def test_more_nodes_help_where_nothing_else_does() -> None:
    few = plan_job(arctic(job__parallel__num_workers=64, job__parallel__expert_parallel_size=64))
    assert not few.fits
    assert [one.fields for one in few.changes] == [
        {"parallel.num_workers": 256, "parallel.expert_parallel_size": 128},
        {"train.tuning": "frozen_moe"},
    ]
    hopeless = plan_job(arctic(hardware__gpu_memory_gb=8))
    assert not any(change.fits for change in hopeless.changes)


def test_hidden_communication_lies_between_the_bounds() -> None:
    worst, best = plan_job(arctic()).step, plan_job(arctic(assumptions__hidden_communication=1)).step
    half = plan_job(arctic(assumptions__hidden_communication=0.5)).step
    assert best.step_s == pytest.approx(worst.shortest_step_s)
    assert half.step_s == pytest.approx((worst.step_s + best.step_s) / 2)


@pytest.mark.parametrize("name", HARDWARE)
def test_hardware_has_a_name_or_numbers(name: str) -> None:
    by_name = PlanRequest.model_validate({"job": load_spec(ARCTIC).model_dump(mode="json"), "hardware": name}).hardware
    assert by_name == HardwareSpec.model_validate({"name": name})
    assert by_name.model_dump(include=set(HARDWARE[name])) == HARDWARE[name]
    assert HardwareSpec.model_validate({"name": name, "hbm_gb_per_s": 1.0}).hbm_gb_per_s == 1.0


def test_a_checkpoints_own_architecture_is_planned(job_document: dict[str, Any], tmp_path: Path) -> None:
    config = MoEConfig(hidden_size=256, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=4)
    job_document["model"] = {"base": str(tmp_path)}
    spec = JobSpec.model_validate(job_document)
    with pytest.raises(InvalidSpecError, match=r"model\.base: .*cannot be read here"):
        planned_config(spec)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert planned_config(spec) == config
    job_document["parallel"] |= {"num_workers": 8, "expert_parallel_size": 8}
    job_document["train"]["global_batch_rows"] = 8
    with pytest.raises(InvalidSpecError, match="does not divide the checkpoint's 4 experts"):
        planned_config(JobSpec.model_validate(job_document))
