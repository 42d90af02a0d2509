"""Seconds of computation in an optimiser step: each part is bound by its operations or by the bytes it moves.

A product of an [M, N] and an [N, P] matrix takes 2 M N P operations, its backward pass twice as many, of which frozen
weights save half. Attention is causal within a document, so a query sees half of it on average.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.plan.layout import Layout
from service.plan.memory import num_trained
from service.spec.plan import ComputePlan, PlanRequest

_OPTIMISER_TRAFFIC_BYTES = 36
"""Of an owned parameter: master weight and two moments read and written, the gradient read, scaled, read."""


@dataclass(frozen=True)
class Operations:
    """Of one micro-batch's forward pass on one GPU.

    Attributes:
        dense: projections, attention, residual MLPs, routers, of all layers.
        experts: at a mean load.
        head: output head, at the trained positions.
    """

    dense: float
    experts: float
    head: float

    @classmethod
    def of(cls, layout: Layout, request: PlanRequest) -> Operations:
        """Count them."""
        config, tokens = layout.config, layout.num_tokens
        embeddings = 2 * config.vocab_size * config.hidden_size
        attended = 4 * config.num_layers * config.hidden_size * _mean_context(layout, request)
        return cls(
            tokens * (2 * (layout.num_dense - embeddings) + attended),
            tokens * 2 * config.num_layers * config.top_k * config.num_expert_params,
            num_trained(layout, request) * 2 * config.hidden_size * config.vocab_size,
        )


def _mean_context(layout: Layout, request: PlanRequest) -> float:
    """Keys that a token sees, if all documents are equally long."""
    length = layout.spec.data.sequence_length
    if request.data.num_tokens and request.data.num_examples:
        length = min(length, request.data.num_tokens // request.data.num_examples)
    return (length + 1) / 2


def plan_compute(layout: Layout, request: PlanRequest) -> ComputePlan:
    """Seconds of each part, over the micro-batches of a step."""
    hardware, assumed, config = request.hardware, request.assumptions, layout.config
    forward = Operations.of(layout, request)
    busiest = forward.experts * (assumed.expert_load if layout.spec.parallel.expert_parallel_size > 1 else 1.0)
    peak = hardware.bf16_tflops if layout.spec.train.precision == "bf16" else hardware.fp32_tflops
    rate, bandwidth = 1e12 * peak * assumed.matmul_efficiency, 1e9 * hardware.hbm_gb_per_s * assumed.hbm_efficiency
    is_recomputed = layout.spec.train.activation_checkpointing

    def product_s(operations: float, weights: int, passes: int) -> float:
        return passes * max(operations / rate, layout.number_bytes * weights / bandwidth)

    head_weights = config.hidden_size * config.vocab_size
    dense_weights = layout.num_dense - 2 * head_weights
    expert_passes = 3 if layout.spec.train.tuning == "full" else 2
    dense_pass, expert_pass = product_s(forward.dense, dense_weights, 1), product_s(busiest, layout.num_expert, 1)
    # each number that a layer keeps is written and read once forward, and as much for it and for its gradient backward
    kept = config.num_layers * layout.num_tokens * layout.number_bytes * config.num_activations()
    of_micro_batch = {
        "attention_and_mlp_s": 3 * dense_pass,
        "experts_s": expert_passes * expert_pass,
        "head_s": product_s(forward.head, head_weights, 3),
        "recomputation_s": dense_pass + expert_pass if is_recomputed else 0.0,
        "memory_traffic_s": (8 if is_recomputed else 6) * kept / bandwidth,
    }
    seconds = {name: layout.num_micro_batches * value for name, value in of_micro_batch.items()}
    return ComputePlan(**seconds, optimiser_s=_OPTIMISER_TRAFFIC_BYTES * layout.num_owned / bandwidth)
