"""Seconds of computation in an optimiser step: each part is bound by its operations or by the bytes it moves.

Operations are counted in `moe.operations`, with all documents equally long.
"""

from __future__ import annotations

from moe.operations import Operations, attended_pairs
from service.plan.layout import Layout
from service.plan.memory import num_trained
from service.spec.plan import ComputePlan, PlanRequest

_OPTIMISER_TRAFFIC_BYTES = 36
"""Of an owned parameter: master weight and two moments read and written, the gradient read, scaled, read."""


def forward_operations(layout: Layout, request: PlanRequest) -> Operations:
    """Of one micro-batch's forward pass on one GPU; its experts are loaded at the mean."""
    tokens, length = layout.num_tokens, _mean_length(layout, request)
    return Operations.of(
        layout.config,
        tokens=tokens,
        attended=tokens / length * attended_pairs(length),
        trained=num_trained(layout, request),
    )


def _mean_length(layout: Layout, request: PlanRequest) -> int:
    """Tokens of a document, if all are equally long."""
    length = layout.spec.data.sequence_length
    if request.data.num_tokens and request.data.num_examples:
        length = min(length, request.data.num_tokens // request.data.num_examples)
    return length


def plan_compute(layout: Layout, request: PlanRequest) -> ComputePlan:
    """Seconds of each part, over the micro-batches of a step."""
    hardware, assumed, config = request.hardware, request.assumptions, layout.config
    forward = forward_operations(layout, request)
    of_dense = forward.projections + forward.attention + forward.routers
    busiest = forward.experts * (assumed.expert_load if layout.spec.parallel.expert_parallel_size > 1 else 1.0)
    peak = hardware.bf16_tflops if layout.spec.train.precision == "bf16" else hardware.fp32_tflops
    rate, bandwidth = 1e12 * peak * assumed.matmul_efficiency, 1e9 * hardware.hbm_gb_per_s * assumed.hbm_efficiency
    is_recomputed = layout.spec.train.activation_checkpointing

    def product_s(operations: float, weights: int, passes: int) -> float:
        return passes * max(operations / rate, layout.number_bytes * weights / bandwidth)

    head_weights = config.hidden_size * config.vocab_size
    dense_weights = layout.num_dense - 2 * head_weights
    trained, back = layout.trained_parts, layout.num_layers_passed / config.num_layers
    # both products of attention have a gradient, also where the weights around it have none
    attention_s = back * (not trained.dense) * forward.attention / rate
    dense_pass, expert_pass = product_s(of_dense, dense_weights, 1), product_s(busiest, layout.num_expert, 1)
    # each number that a layer keeps is written and read once forward, and as much for it and for its gradient backward
    kept = config.num_layers * layout.num_tokens * layout.number_bytes * config.num_activations()
    of_micro_batch = {
        "attention_and_mlp_s": (1 + back * (1 + trained.dense)) * dense_pass + attention_s,
        "experts_s": (1 + back * (1 + trained.experts)) * expert_pass,
        "head_s": product_s(forward.head, head_weights, 2 + trained.dense),
        "recomputation_s": dense_pass + expert_pass if is_recomputed else 0.0,
        "memory_traffic_s": ((4 if is_recomputed else 2) + 4 * back) * kept / bandwidth,
    }
    seconds = {name: layout.num_micro_batches * value for name, value in of_micro_batch.items()}
    return ComputePlan(**seconds, optimiser_s=_OPTIMISER_TRAFFIC_BYTES * layout.num_owned / bandwidth)
