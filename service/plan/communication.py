"""What the GPUs send to one another in an optimiser step, over which link, and how long that takes.

An expert-parallel group is of consecutive GPUs, so it fills whole nodes; the GPUs that hold the same experts are a
group's size apart. Bytes on the wire are those of NCCL's rings, one through each network card: an all-reduce sends each
byte 2 (n - 1) / n times, an all-gather (n - 1) / n of what it collects, and with m GPUs of a node in the group one hop
in m leaves the node. An all-to-all sends to each of the group directly.

Left out are messages below a megabyte: counts, norms, metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.plan.layout import Layout
from service.plan.memory import BUCKET_NUMBERS
from service.spec.plan import CollectivePlan, PlanRequest


@dataclass(frozen=True)
class Group:
    """GPUs that communicate.

    Attributes:
        size: n.
        per_node: m, those of one node.
    """

    size: int
    per_node: int

    @classmethod
    def spread(cls, size: int, distance: int, gpus_per_node: int) -> Group:
        """GPUs at equal distances, as the numbers of the processes have it."""
        return cls(size, max(1, min(size, gpus_per_node // distance)))

    def ring(self, sent: float) -> tuple[float, float]:
        """Bytes over NVLink and over the network, of those that a GPU sends round a ring."""
        to_network = 0.0 if self.per_node == self.size else sent / self.per_node
        return sent - to_network, to_network

    def direct(self, num_bytes: float) -> tuple[float, float]:
        """The same for equal parts to each of the group, itself included."""
        return num_bytes * (self.per_node - 1) / self.size, num_bytes * (self.size - self.per_node) / self.size


def plan_communication(layout: Layout, request: PlanRequest) -> list[CollectivePlan]:
    """Every kind of message of an optimiser step that has another GPU to go to."""
    return [collective for collective in _collectives(layout, request) if collective.group_size > 1]


def _collectives(layout: Layout, request: PlanRequest) -> Iterator[CollectivePlan]:
    per_node, parallel = request.hardware.gpus_per_node, layout.spec.parallel
    everyone = Group.spread(layout.num_gpus, 1, per_node)
    experts = Group.spread(parallel.expert_parallel_size, 1, per_node)
    replicas = Group.spread(layout.num_expert_replicas, parallel.expert_parallel_size, per_node)
    yield from _dispatch(layout, request, experts)
    reductions, dense, expert = Reductions.of(layout), layout.num_dense_trained, layout.num_expert_trained
    # the optimiser has the dense part's matrices and norms in groups of their own
    gatherings = 1 if layout.spec.train.tuning == "router_only" else 2
    if parallel.expert_parallel_size == 1:
        shared = [_Shared("all", everyone, dense + expert, reductions.all, gatherings)]
    else:
        shared = [_Shared("dense", everyone, dense, reductions.dense, gatherings)]
        shared += [_Shared("expert", replicas, expert, reductions.expert, 1)] if expert else []
    for one in shared:
        yield from one.collectives(layout, request)


@dataclass(frozen=True)
class _Shared:
    """Parameters that a group's gradients are added up for, and whose updates it gathers.

    Attributes:
        name: which they are.
        group: who holds them.
        count: numbers, trained.
        reductions: in a backward pass.
        gatherings: in a step.
    """

    name: str
    group: Group
    count: int
    reductions: int
    gatherings: int

    def collectives(self, layout: Layout, request: PlanRequest) -> Iterator[CollectivePlan]:
        """An all-reduce in each micro-batch, an all-gather after the step."""
        group, num_bytes = self.group, layout.number_bytes * self.count
        others = (group.size - 1) / group.size
        reduced, reductions = layout.num_micro_batches * num_bytes, layout.num_micro_batches * self.reductions
        wire = group.ring(2 * others * reduced)
        yield _collective(request, f"all_reduce: gradients, {self.name}", group, (reductions, reduced), wire)
        wire, owned = group.ring(others * num_bytes), num_bytes // group.size
        yield _collective(request, f"all_gather: updated weights, {self.name}", group, (self.gatherings, owned), wire)


@dataclass(frozen=True)
class Reductions:
    """How often gradients are reduced in one backward pass.

    Attributes:
        all: buckets.
        dense: those with dense gradients.
        expert: those with experts' gradients, which are reduced by themselves.
    """

    all: int
    dense: int
    expert: int

    @classmethod
    def of(cls, layout: Layout) -> Reductions:
        """Fill buckets as DeepSpeed does: in the order in which gradients come, until the next one finds no room."""
        buckets: list[set[bool]] = [set()]
        filled = 0
        for count, is_expert in _gradients(layout):
            if filled + count > BUCKET_NUMBERS and filled:
                buckets.append(set())
                filled = 0
            filled += count
            buckets[-1].add(is_expert)
        return cls(len(buckets), sum(False in one for one in buckets), sum(True in one for one in buckets))


def _gradients(layout: Layout) -> Iterator[tuple[int, bool]]:
    """Numbers of each matrix's gradient in the order of the backward pass, and whether it is an expert's."""
    config, tuning = layout.config, layout.spec.train.tuning
    router = config.hidden_size * config.num_experts
    if tuning == "router_only":
        yield from [(router, False)] * config.num_layers
        return
    hidden, residual, width = config.hidden_size, config.residual_size, config.num_kv_heads * config.head_dim
    local = layout.num_expert // config.num_layers
    yield config.vocab_size * hidden, False
    for _ in range(config.num_layers):
        yield from ((hidden * residual, False) for _ in range(3))
        if tuning == "full":
            yield local // 3, True  # w2
            yield local - local // 3, True  # w1 above w3
        yield from ((count, False) for count in (hidden * hidden, hidden * width, hidden * width, hidden * hidden))
        if tuning == "full":
            yield router, False
    yield config.vocab_size * hidden, False


def _dispatch(layout: Layout, request: PlanRequest, group: Group) -> Iterator[CollectivePlan]:
    """There and back in each pass; the counts before them are left out."""
    config = layout.config
    passes = (2 if layout.spec.train.activation_checkpointing else 1) * config.num_layers + layout.num_layers_passed
    calls = 2 * passes * layout.num_micro_batches
    num_bytes = calls * layout.num_tokens * config.top_k * config.hidden_size * layout.number_bytes
    nvlink, network = group.direct(num_bytes)
    load = request.assumptions.expert_load
    wire = nvlink * load, network * load
    yield _collective(request, "all_to_all: tokens to experts and back", group, (calls, num_bytes), wire)


def _collective(
    request: PlanRequest, name: str, group: Group, sent: tuple[int, int], wire: tuple[float, float]
) -> CollectivePlan:
    """Put one together.

    Args:
        request: has the bandwidths.
        name: kind and purpose.
        group: who takes part.
        sent: calls, and bytes in all of them.
        wire: bytes over NVLink, and over the network.
    """
    hardware, assumed = request.hardware, request.assumptions
    kind, _, purpose = name.partition(": ")
    nvlink_s = wire[0] / (1e9 * hardware.nvlink_gb_per_s * assumed.nvlink_efficiency)
    network_s = wire[1] / (1e9 * hardware.network_gb_per_s * assumed.network_efficiency)
    document = {
        "kind": kind,
        "purpose": purpose,
        "group_size": group.size,
        "calls": sent[0],
        "bytes": sent[1],
        "nvlink_bytes": round(wire[0]),
        "network_bytes": round(wire[1]),
        "seconds": max(nvlink_s, network_s),
    }
    return CollectivePlan.model_validate(document)
