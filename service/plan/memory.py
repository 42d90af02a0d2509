"""Bytes of one GPU at the peak of a step.

The peak lies in the backward pass of the layers walked first, while a full bucket of gradients is copied to be reduced;
or, if the vocabulary is large beside the layers, in the output head's. A step of the optimiser needs less: it has
neither activations nor buckets. What is alive at once only in part, such as a layer's activations computed anew and all
of the bucket's copy, is added up: the sum is above the peak, not below. It is that of the GPUs that own the last
layers' gradients, and so have a place for them from the start; others come to theirs when activations have gone.

DeepSpeed's part, of version 0.19.8, as `ray_jobs.train.engine` configures it: two buckets of a fixed size whatever the
model (one on CPUs), allocated anew in each backward pass, and a copy of one that is reduced; the gradient is added up
in fp32, by each GPU for the part that it owns.
"""

from __future__ import annotations

import math

from service.plan.layout import Layout
from service.spec.ownership import GRADIENT_BYTES, OPTIMISER_BYTES
from service.spec.plan import MemoryPlan, PlanRequest
from service.spec.train import LOGITS_AT_ONCE

BUCKET_NUMBERS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`, which the project leaves as it is."""

_ORDER_BYTES = 16
"""Of a token copy: its place among the copies by expert, and back."""


def plan_memory(layout: Layout, request: PlanRequest) -> MemoryPlan:
    """Add up the parts.

    Args:
        layout: the job on its GPUs; its spec need not be the request's.
        request: hardware and assumptions.
    """
    parts = {
        "weights": layout.number_bytes * (layout.num_dense + layout.num_expert),
        "gradients": GRADIENT_BYTES * layout.num_owned,
        "optimiser": OPTIMISER_BYTES * layout.num_owned,
        "activations_kept": kept_bytes(layout, request),
        "activations_working": working_bytes(layout, request),
        "communication_buffers": bucket_bytes(layout),
        "reserved": round(request.assumptions.reserved_memory_gb * 1e9),
    }
    return MemoryPlan(**parts, total=sum(parts.values()), available=round(request.hardware.gpu_memory_gb * 1e9))


def layer_bytes(layout: Layout, request: PlanRequest) -> int:
    """What a layer that gradients go through keeps of a micro-batch, without recomputation.

    A frozen matrix keeps no input. On GPUs `grouped_mm` keeps the trained experts' activated rows too, and attention
    keeps what was attended to only once; on CPUs frozen experts keep their input all the same. The busiest GPU's
    experts keep `expert_load` times the copies of the mean.
    """
    config, tuning, on_gpu = layout.config, layout.spec.train.tuning, layout.spec.parallel.accelerator != "cpu"
    hidden, intermediate = config.hidden_size, config.expert_intermediate_size
    numbers, of_copy = config.num_activations(), hidden + 2 * intermediate
    if tuning == "router_only":
        numbers -= 3 * hidden + config.residual_size  # into q, k, v; into the output projection; into w1, w3; into w2
    elif on_gpu:
        numbers -= hidden
    if tuning == "frozen_moe":
        numbers -= hidden  # into the router
    if on_gpu:
        further = intermediate if tuning == "full" else -hidden
        numbers += config.top_k * further
        of_copy += further
    return _bytes_of_tokens(layout, numbers + (request.assumptions.expert_load - 1) * config.top_k * of_copy)


def unpassed_layer_bytes(layout: Layout) -> int:
    """What a layer keeps that gradients reach from above only: its router's input, and the experts' outputs."""
    return _bytes_of_tokens(layout, (1 + layout.config.top_k) * layout.config.hidden_size)


def _bytes_of_tokens(layout: Layout, numbers: float) -> int:
    """So many numbers of each token, its probabilities in fp32, and the copies' order."""
    config = layout.config
    bookkeeping = 4 * config.num_experts + _ORDER_BYTES * config.top_k
    return math.ceil(layout.num_tokens * (layout.number_bytes * numbers + bookkeeping))


def kept_bytes(layout: Layout, request: PlanRequest) -> int:
    """What the layers and the final norm keep of a micro-batch."""
    num_layers, num_passed = layout.config.num_layers, layout.num_layers_passed
    row = layout.num_tokens * layout.config.hidden_size * layout.number_bytes
    if layout.spec.train.activation_checkpointing:
        return row + num_layers * row
    of_unpassed = (num_layers - num_passed) * unpassed_layer_bytes(layout)
    return row + num_passed * layer_bytes(layout, request) + of_unpassed


def num_trained(layout: Layout, request: PlanRequest) -> int:
    """Targets of the loss in a micro-batch."""
    return math.ceil(layout.num_tokens * request.data.trained_fraction)


def head_gradient_bytes(layout: Layout, request: PlanRequest) -> int:
    """Gradients of the trained head and of the trained positions' hidden states, computed with the loss already."""
    config = layout.config
    num_words = 0 if layout.spec.train.tuning == "router_only" else config.vocab_size
    return layout.number_bytes * config.hidden_size * (num_trained(layout, request) + num_words)


def working_bytes(layout: Layout, request: PlanRequest) -> int:
    """The most that is alive for a short time.

    In a layer's backward pass that is the layer computed anew; without recomputation nothing, since gradients take the
    place of activations that are done with. In the output head's it is its gradients, that of the hidden states in fp32
    too, and the logits of a part of the vocabulary, in the model's type, in fp32 and as probabilities, when there are
    no buckets yet.
    """
    config, trained = layout.config, num_trained(layout, request)
    of_layer = layer_bytes(layout, request) if layout.spec.train.activation_checkpointing else 0
    of_logits = min(trained * config.vocab_size, LOGITS_AT_ONCE) * (layout.number_bytes + 4 + 4)
    of_head = head_gradient_bytes(layout, request) + 4 * trained * config.hidden_size + of_logits
    return max(of_layer, of_head - bucket_bytes(layout))


def bucket_bytes(layout: Layout) -> int:
    """DeepSpeed's buckets, and the copy of one that is reduced, no larger than all gradients."""
    trained = layout.num_dense_trained + layout.num_expert_trained
    num_buckets = 1 if layout.spec.parallel.accelerator == "cpu" else 2
    return layout.number_bytes * (num_buckets * BUCKET_NUMBERS + min(BUCKET_NUMBERS, trained))
