"""What a run proves of itself holds, in every mode of training, and each proof fails when its claim is false.

The processes run all cases, and those of `conftest` some; each case is told by what its proofs say.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import moe.model
import ray_jobs.train.proof_gradients
from moe.attention import Documents
from moe.freeze import freeze
from moe.router import Routing
from ray_jobs.train import step as step_module
from ray_jobs.train.batches import RowOrder, collate, share_of_worker
from ray_jobs.train.cursor import data_cursor
from ray_jobs.train.engine import TrainingStep, balancing, build_engine, expert_parallel_group
from ray_jobs.train.proof_gradients import worst
from ray_jobs.train.proofs import Proof, prove, prove_data, prove_step_count, require
from service.errors import ProofError
from service.spec.job import JobSpec
from tests.moe.conftest import tiny_model
from tests.processes import run_processes
from tests.train.parallel_run import NUM_ROWS, job_spec, normalise_per_worker, packed_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the four workers start with the first of them

ORDER = RowOrder(NUM_ROWS, epochs=2, global_batch_rows=4, seed=3)

Mutation = Callable[[pytest.MonkeyPatch, TrainingStep], None]


def normalised_per_worker(patch: pytest.MonkeyPatch, _step: TrainingStep) -> None:
    patch.setattr(step_module, "global_counts", step_module.global_counts)
    normalise_per_worker()
    patch.setattr(ray_jobs.train.proof_gradients, "global_counts", step_module.global_counts)


def documents_see_each_other(patch: pytest.MonkeyPatch, _step: TrainingStep) -> None:
    """Positions restart, attention does not stop."""

    def one_document(lengths: list[int], device: str = "cpu") -> Documents:
        return Documents((sum(lengths),), torch.cat([torch.arange(n, device=device) for n in lengths]))

    patch.setattr(Documents, "from_lengths", one_document)


def balance_loss_detached(patch: pytest.MonkeyPatch, _step: TrainingStep) -> None:
    layer_balance = moe.model.layer_balance

    def detached(routing: Routing, *rest: Any) -> Any:
        return layer_balance(replace(routing, probabilities_TE=routing.probabilities_TE.detach()), *rest)

    patch.setattr(moe.model, "layer_balance", detached)


def balance_loss_over_what_a_pass_holds(patch: pytest.MonkeyPatch, _step: TrainingStep) -> None:
    layer_balance = moe.model.layer_balance
    patch.setattr(
        moe.model, "layer_balance", lambda routing, lengths, group: layer_balance(routing, (sum(lengths),), group)
    )


def replicas_differ(_patch: pytest.MonkeyPatch, step: TrainingStep) -> None:
    with torch.no_grad():
        step.model.layers[1].self_attn.o_proj.weight.mul_(1 + 0.1 * dist.get_rank())


def weights_not_finite(_patch: pytest.MonkeyPatch, step: TrainingStep) -> None:
    step.model.norm.weight.data[0] = float("nan")


def routing_depends_on_the_company(patch: pytest.MonkeyPatch, step: TrainingStep) -> None:
    """Mean-centred gates, as in a batch norm: not the same for a row taken with another."""
    for layer in step.model.layers:
        layer.block_sparse_moe.router.gate.register_forward_hook(lambda _m, _a, out: out - out.mean(0, keepdim=True))


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        normalised_per_worker,
        documents_see_each_other,
        balance_loss_detached,
        balance_loss_over_what_a_pass_holds,
        replicas_differ,
        weights_not_finite,
        routing_depends_on_the_company,
    )
}


@contextmanager
def patching() -> Iterator[pytest.MonkeyPatch]:
    patch = pytest.MonkeyPatch()
    yield patch
    patch.undo()


def spec_of(expert_parallel: int, precision: str = "fp32", **train: Any) -> JobSpec:
    options = type("Options", (), {"batch_rows": 4, "precision": precision, "expert_parallel": expert_parallel})
    document = job_spec(options, dist.get_world_size()).model_dump(mode="json")  # type: ignore[arg-type]
    document["train"] |= train
    return JobSpec.model_validate(document)


def step_of(spec: JobSpec) -> TrainingStep:
    model = tiny_model(
        expert_parallel_group(spec.parallel.expert_parallel_size),
        balancing(spec),
        activation_checkpointing=spec.train.activation_checkpointing,
    )
    freeze(model, spec.train.tuning)
    return TrainingStep(model, spec.train.balance_loss_coefficient, 1)


def proofs_of(spec: JobSpec, step: TrainingStep) -> list[Proof]:
    if spec.train.precision == "bf16":
        step = step.bfloat16()
    return prove(step, packed_rows(), ORDER, 0, categories=["c"], spec=spec.train)


def state(engine: Any) -> str:
    """A hash of all that a proof might have touched."""
    inner = engine.optimizer.optimizer
    tensors = [*engine.module.parameters(), *engine.optimizer.single_partition_of_fp32_groups, torch.get_rng_state()]
    tensors += [value for of_one in inner.state.values() for value in of_one.values()]
    gradients = [None if p.grad is None else p.grad for p in engine.module.parameters()]
    numbers = [engine.micro_steps, engine.global_steps, engine.module.training, str(gradients)]
    numbers += [len(module._forward_hooks) for module in engine.module.modules()]
    content = b"".join(tensor.detach().float().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content + json.dumps(numbers).encode()).hexdigest()


def with_engine(precision: str) -> dict[str, Any]:
    """Proofs between real steps, and the count of steps."""
    spec = spec_of(2, precision)
    engine = build_engine(step_of(spec), spec)
    rows = packed_rows()

    def take(step: int) -> float:
        mine = share_of_worker(ORDER.rows_of_step(step), dist.get_rank(), dist.get_world_size())
        batches = [collate([None if row is None else rows[row]], ["c"], "cpu") for row in mine]
        return step_module.take_step(engine, batches, 1e-2, 1).gradient_norm

    take(0)
    before = state(engine)
    proofs = prove(engine.module, rows, ORDER, 1, categories=["c"], spec=spec.train, saved_cursor=data_cursor(ORDER, 1))
    after = state(engine)
    take(1)
    counts = [prove_step_count(engine, 2), prove_step_count(engine, 3), prove_step_count(engine, 3, skipped=1)]
    return {"untouched": before == after, "proofs": told(proofs), "steps": told(counts)}


def told(proofs: list[Proof]) -> list[dict[str, Any]]:
    return [proof.describe() for proof in proofs]


MODES: dict[str, dict[str, Any]] = {
    "replicas": {"expert_parallel": 1},
    "expert parallel": {"expert_parallel": 2},
    "expert parallel in bf16": {"expert_parallel": 2, "precision": "bf16"},
    "frozen MoE": {"expert_parallel": 2, "tuning": "frozen_moe"},
    "router only": {"expert_parallel": 2, "tuning": "router_only"},
    "balanced over the batch": {"expert_parallel": 1, "balance_loss_unit": "batch"},
    "dropping": {"expert_parallel": 2, "capacity_factor": 0.75, "activation_checkpointing": True},
    "no balance loss": {"expert_parallel": 1, "balance_loss_coefficient": 0.0},
}
MODES_OF_FOUR = ("expert parallel in bf16", "dropping")
FAILING = {
    "normalised_per_worker": {"gradient"},
    "documents_see_each_other": {"packing", "balance_loss", "gradient"},
    "balance_loss_detached": {"router_gradient"},
    "balance_loss_over_what_a_pass_holds": {"balance_loss", "gradient"},
    "replicas_differ": {"gradient"},
    "weights_not_finite": {"router_gradient", "balance_loss", "gradient", "packing"},
    "routing_depends_on_the_company": {"balance_loss", "gradient", "packing"},
}
FAILING_IN_BF16 = FAILING | {"balance_loss_over_what_a_pass_holds": {"balance_loss"}}


def proofs_of_mode(name: str) -> list[dict[str, Any]]:
    spec = spec_of(**MODES[name])
    return told(proofs_of(spec, step_of(spec)))


def on_four_workers() -> dict[str, Any]:
    """By mode."""
    return {name: proofs_of_mode(name) for name in MODES_OF_FOUR}


def _process(rank: int, directory: str) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for name in MODES:
        results[name] = proofs_of_mode(name)
    for name, mutation in MUTATIONS.items():
        for precision in ("fp32", "bf16"):
            spec = spec_of(1, precision)
            step = step_of(spec)
            with patching() as patch:
                mutation(patch, step)
                results[f"{name} {precision}"] = told(proofs_of(spec, step))
    results["data"] = told(data_proofs())
    results["engine"] = with_engine("bf16")
    (Path(directory) / f"result-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def data_proofs() -> list[Proof]:
    """As it should be; resumed a step late; on workers that shuffle differently; from a checkpoint without a record."""
    saved, other = data_cursor(ORDER, 2), replace(ORDER, seed=dist.get_rank())
    return [
        prove_data(ORDER, 2, saved),
        prove_data(ORDER, 3, saved),
        prove_data(other, 0, None),
        prove_data(ORDER, 2, None),
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("two")
    run_processes(_process, str(directory), number=2)
    first, other = (json.loads((directory / f"result-{rank}.json").read_text()) for rank in range(2))
    assert str(other) == str(first), "all workers come to the same verdict"
    return first


def by_name(proofs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {proof["name"]: proof for proof in proofs}


@pytest.mark.parametrize("mode", MODES)
def test_every_proof_holds_in_every_mode(mode: str, results: dict[str, Any]) -> None:
    proofs = by_name(results[mode])
    assert list(proofs) == ["router_gradient", "balance_loss", "gradient", "packing", "data"]
    assert [name for name, proof in proofs.items() if not proof["passed"]] == []
    options = MODES[mode]
    assert (proofs["router_gradient"]["measured"] is None) == (mode in {"frozen MoE", "no balance loss"})
    assert (proofs["balance_loss"]["measured"] is None) == (mode == "no balance loss")
    accumulated = "accumulated row by row: norm" in proofs["gradient"]["detail"]
    assert accumulated == (options.get("balance_loss_unit") != "batch")


@pytest.mark.parametrize("mode", MODES_OF_FOUR)
def test_every_proof_holds_on_two_expert_parallel_groups(mode: str, four_workers: list[dict[str, Any]]) -> None:
    proofs = four_workers[0]["proofs"][mode]
    assert all(proof["passed"] for proof in proofs)
    assert "8 rows" in by_name(proofs)["gradient"]["detail"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_false_claim_is_noticed(mutation: str, results: dict[str, Any]) -> None:
    for precision, failing in (("fp32", FAILING), ("bf16", FAILING_IN_BF16)):
        proofs = [Proof(**proof) for proof in results[f"{mutation} {precision}"]]
        assert {proof.name for proof in proofs if not proof.passed} == failing[mutation], precision
        with pytest.raises(ProofError, match=next(proof.name for proof in proofs if not proof.passed)) as raised:
            require(proofs)
        assert (raised.value.code, raised.value.fault) == ("proof_failed", "numerics")


def test_rows_that_come_twice_or_never_are_noticed(results: dict[str, Any]) -> None:
    good, late, torn, unknown = results["data"]
    assert good["passed"]
    assert good["detail"] == "0 examples repeated, 0 skipped; 8 of 28 consumed"
    assert (late["passed"], late["measured"]) == (False, 4.0)
    assert "0 examples repeated, 4 skipped" in late["detail"]
    assert not torn["passed"]
    assert "workers do not agree" in torn["detail"]
    assert unknown["measured"] is None, "nothing is claimed without a record"
    assert "not proven" in unknown["detail"]


def test_proofs_leave_the_engine_as_it_was(results: dict[str, Any]) -> None:
    assert results["engine"]["untouched"]
    assert all(proof["passed"] for proof in results["engine"]["proofs"])


def test_missing_steps_are_noticed_and_skipped_ones_counted(results: dict[str, Any]) -> None:
    whole, short, skipped = results["engine"]["steps"]
    assert (whole["passed"], short["passed"], skipped["passed"]) == (True, False, True)
    assert short["measured"] == 1.0


def test_nothing_passes_by_being_no_number() -> None:
    assert math.isnan(worst([1.0, math.nan, 2.0]))
    assert not Proof.of_error("gradient", math.nan, 1.0, "").passed
    assert not Proof.of_error("gradient", math.inf, 1.0, "").passed
    require([Proof.nothing_to_measure("gradient", "")])
