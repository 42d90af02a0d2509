"""The plan of a job: memory, communication, time, data and cost, from the spec and the hardware's data sheet alone."""

from __future__ import annotations

import math

from service.plan.changes import plan_changes
from service.plan.communication import plan_communication
from service.plan.layout import Layout
from service.plan.memory import plan_memory
from service.plan.roofline import forward_operations, plan_compute
from service.spec.plan import CollectivePlan, DataPlan, Plan, PlanRequest, RunPlan, StepPlan

_PACKED_BYTES_PER_TOKEN = 5
_CHECKPOINT_BYTES = 12
CHECKPOINTS_AT_ONCE = 3
"""Two are kept, while a third is written."""


def plan_job(request: PlanRequest) -> Plan:
    """Plan a job.

    Args:
        request: the job, the hardware, and what is assumed.

    Raises:
        InvalidSpecError: as `service.plan.layout.planned_config`.
    """
    layout = Layout.of(request.job)
    memory, communication = plan_memory(layout, request), plan_communication(layout, request)
    fits = memory.total <= memory.available
    step = _plan_step(layout, request, communication)
    run = _plan_run(layout, request, step)
    return Plan(
        num_params=layout.config.num_params(),
        num_active_params=layout.config.num_active_params(),
        nodes=math.ceil(layout.num_gpus / request.hardware.gpus_per_node),
        gpus=layout.num_gpus,
        memory=memory,
        fits=fits,
        changes=[] if fits else plan_changes(layout, request),
        communication=communication,
        step=step,
        run=run,
        data=_plan_data(layout, request, run),
        hardware=request.hardware,
        assumptions=request.assumptions,
    )


def _plan_step(layout: Layout, request: PlanRequest, communication: list[CollectivePlan]) -> StepPlan:
    compute = plan_compute(layout, request)
    compute_s = sum(compute.model_dump().values())
    communication_s = sum(collective.seconds for collective in communication)
    # weights are gathered after the step, when there is nothing left to compute
    exposed_s = sum(collective.seconds for collective in communication if collective.kind == "all_gather")
    shortest_s = max(compute_s, communication_s - exposed_s) + exposed_s
    longest_s = compute_s + communication_s
    step_s = longest_s - request.assumptions.hidden_communication * (longest_s - shortest_s)
    tokens = round(layout.spec.train.global_batch_rows * layout.spec.data.sequence_length * request.data.fill)
    of_model = layout.num_micro_batches * forward_operations(layout, request).training(layout.trained_parts)
    bf16 = layout.spec.train.precision == "bf16"
    peak = 1e12 * (request.hardware.bf16_tflops if bf16 else request.hardware.fp32_tflops)
    return StepPlan(
        compute=compute,
        compute_s=compute_s,
        communication_s=communication_s,
        step_s=step_s,
        shortest_step_s=shortest_s,
        tokens=tokens,
        tokens_per_s=tokens / step_s,
        model_flops_utilisation=of_model / step_s / peak,
    )


def _plan_run(layout: Layout, request: PlanRequest, step: StepPlan) -> RunPlan | None:
    train, data = layout.spec.train, request.data
    if data.num_tokens is not None:
        rows = math.ceil(data.num_tokens / (data.fill * layout.spec.data.sequence_length))
        steps = train.num_steps(rows)
    elif train.max_steps is not None:
        rows, steps = None, train.max_steps
    else:
        return None
    hours = steps * step.step_s / 3600
    price = request.price_per_gpu_hour
    gpu_hours = hours * layout.num_gpus
    cost = None if price is None else gpu_hours * price
    return RunPlan(rows=rows, steps=steps, hours=hours, gpu_hours=gpu_hours, cost=cost)


def _plan_data(layout: Layout, request: PlanRequest, run: RunPlan | None) -> DataPlan:
    config, train = layout.config, layout.spec.train
    checkpoint_bytes = _CHECKPOINT_BYTES * config.num_trained_params(train.tuning)
    tokens = request.data.num_tokens
    checkpoints = None if run is None else math.ceil(run.steps / train.checkpoint_every_steps)
    at_once = CHECKPOINTS_AT_ONCE if checkpoints is None else min(CHECKPOINTS_AT_ONCE, checkpoints)
    return DataPlan(
        packed_bytes=None if tokens is None else _PACKED_BYTES_PER_TOKEN * tokens,
        checkpoint_bytes=checkpoint_bytes,
        checkpoints=checkpoints,
        kept_bytes=at_once * checkpoint_bytes + layout.number_bytes * config.num_params(),
    )
