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
from service.spec.plan import MemoryPlan, PlanRequest
from service.spec.train import LOGITS_AT_ONCE

BUCKET_NUMBERS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`, which the project leaves as it is."""

_GRADIENT_BYTES, _OPTIMISER_BYTES = 4, 12
"""Of an owned parameter."""

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
        "gradients": _GRADIENT_BYTES * layout.num_owned,
        "optimiser": _OPTIMISER_BYTES * layout.num_owned,
        "activations_kept": kept_bytes(layout, request),
        "activations_working": working_bytes(layout, request),
        "communication_buffers": bucket_bytes(layout),
        "reserved": round(request.assumptions.reserved_memory_gb * 1e9),
    }
    return MemoryPlan(**parts, total=sum(parts.values()), available=round(request.hardware.gpu_memory_gb * 1e9))


def layer_bytes(layout: Layout, request: PlanRequest) -> int:
    """What a layer keeps of a micro-batch, without recomputation.

    On GPUs `grouped_mm` keeps the experts' activated rows too, of frozen experts neither those nor what came in, and
    a frozen router keeps no input; attention keeps what was attended to only once. The busiest GPU's experts keep
    `expert_load` times the copies of the mean.
    """
    config, tokens, load = layout.config, layout.num_tokens, request.assumptions.expert_load
    hidden, intermediate = config.hidden_size, config.expert_intermediate_size
    numbers, of_copy = config.num_activations(), hidden + 2 * intermediate
    if layout.spec.parallel.accelerator != "cpu":
        is_frozen = layout.spec.train.tuning != "full"
        on_gpu = -hidden if is_frozen else intermediate
        numbers += config.top_k * on_gpu - hidden - is_frozen * hidden
        of_copy += on_gpu
    numbers_at_load = numbers + (load - 1) * config.top_k * of_copy
    bookkeeping = 4 * config.num_experts + _ORDER_BYTES * config.top_k
    return math.ceil(tokens * (layout.number_bytes * numbers_at_load + bookkeeping))


def kept_bytes(layout: Layout, request: PlanRequest) -> int:
    """What the layers and the final norm keep of a micro-batch."""
    row = layout.num_tokens * layout.config.hidden_size * layout.number_bytes
    is_recomputed = layout.spec.train.activation_checkpointing
    return row + layout.config.num_layers * (row if is_recomputed else layer_bytes(layout, request))


def num_trained(layout: Layout, request: PlanRequest) -> int:
    """Targets of the loss in a micro-batch."""
    return math.ceil(layout.num_tokens * request.data.trained_fraction)


def head_gradient_bytes(layout: Layout, request: PlanRequest) -> int:
    """Gradients of the head's weights and of the trained positions' hidden states, computed with the loss already."""
    config = layout.config
    return layout.number_bytes * config.hidden_size * (num_trained(layout, request) + config.vocab_size)


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
