"""What a plan is asked for, and what it answers. The arithmetic is in `service.plan`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from service.spec.base import SpecModel, conflict
from service.spec.job import JobSpec
from service.spec.resources import Resource

_H100 = {
    "gpu_memory_gb": 80.0,
    "bf16_tflops": 989.4,
    "fp32_tflops": 66.9,
    "hbm_gb_per_s": 3350.0,
    "nvlink_gb_per_s": 450.0,
    "network_gb_per_s": 50.0,
}
HARDWARE: dict[str, dict[str, float]] = {
    "h100": _H100,
    "h200": _H100 | {"gpu_memory_gb": 141.0, "hbm_gb_per_s": 4800.0},
}
"""By name, from NVIDIA's data sheets of the SXM5 boards: bf16 tensor cores without sparsity, fp32 without tensor cores;
NVLink 4 is 900 GB/s in both directions together. The network is DGX H100's: a ConnectX-7 card of 400 Gb/s a GPU."""

DEVICE_NAMES = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
"""What the driver calls these boards. Those of the same chip for PCIe are slower, and have other names."""


def peak_flops(name: str, precision: Literal["bf16", "fp32"]) -> float:
    """Operations a second of the products of one GPU, by its data sheet.

    Args:
        name: of `HARDWARE`.
        precision: of the arithmetic.
    """
    return 1e12 * HARDWARE[name]["bf16_tflops" if precision == "bf16" else "fp32_tflops"]


class HardwareSpec(SpecModel):
    """A cluster of equal nodes. What is left out is that of the GPU named; bandwidths are a GPU's, in one direction."""

    name: Literal["h100", "h200"] = "h100"
    """Whose figures fill in what is left out."""
    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs that NVLink joins."""
    gpu_memory_gb: float = Field(default=80.0, gt=0)
    """Memory of a GPU, 10^9 bytes."""
    bf16_tflops: float = Field(default=989.4, gt=0)
    """Peak of dense products in bf16, 10^12 operations a second."""
    fp32_tflops: float = Field(default=66.9, gt=0)
    """Likewise in fp32."""
    hbm_gb_per_s: float = Field(default=3350.0, gt=0)
    """Bandwidth of the GPU's memory, 10^9 bytes a second."""
    nvlink_gb_per_s: float = Field(default=450.0, gt=0)
    """Bandwidth between GPUs of a node."""
    network_gb_per_s: float = Field(default=50.0, gt=0)
    """Bandwidth between nodes, by a network card for each GPU."""

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, document: Any) -> Any:
        if isinstance(document, str):
            document = {"name": document}
        if not isinstance(document, dict):
            return document
        name = document.get("name", "h100")
        return (HARDWARE.get(name, {}) if isinstance(name, str) else {}) | document


class DataEstimate(SpecModel):
    """How much data the job will have. Nothing is read: a plan needs no access to the sources."""

    num_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an epoch; without them, and without `train.max_steps`, the plan tells of one step only."""
    num_examples: int | None = Field(default=None, ge=1)
    """Conversations of an epoch; by default each fills a row, for which attention costs most."""
    trained_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of tokens that are targets of the loss; only for them the output head is computed."""
    fill: float = Field(default=0.999, gt=0, le=1)
    """Share of a packed row that holds tokens."""

    @model_validator(mode="after")
    def _example_has_tokens(self) -> DataEstimate:
        if self.num_examples is not None and (self.num_tokens is None or self.num_tokens < self.num_examples):
            raise conflict("num_examples", "needs `num_tokens`, at least as many")
        return self


class Assumptions(SpecModel):
    """What no data sheet says. These are assumptions, none of them measured on GPUs by this project."""

    matmul_efficiency: float = Field(default=0.6, gt=0, le=1)
    """Share of the peak that products reach."""
    hbm_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Share of the memory's bandwidth that is reached."""
    nvlink_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Share of NVLink's bandwidth that collectives reach."""
    network_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Share of the network's bandwidth that collectives reach."""
    hidden_communication: float = Field(default=0.0, ge=0, le=1)
    """Share of the communication that runs beside computation; 0 is the worst case."""
    expert_load: float = Field(default=1.25, ge=1)
    """Copies that the busiest process of an expert-parallel group gets, as a multiple of the mean. All wait for it."""
    reserved_memory_gb: float = Field(default=5.0, ge=0)
    """Memory for what is not counted: the CUDA context, NCCL's buffers, fragmentation."""


class PlanRequest(SpecModel):
    """A job, and where it would run."""

    job: JobSpec
    hardware: HardwareSpec = HardwareSpec()
    """A plain string is a name."""
    data: DataEstimate = DataEstimate()
    assumptions: Assumptions = Assumptions()
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    """In any currency."""


class MemoryPlan(Resource):
    """Bytes of one GPU at the peak of a step, by part."""

    weights: int
    """In the precision of the arithmetic: the dense part, and this GPU's experts."""
    gradients: int
    """This GPU's part of the accumulated gradient, fp32."""
    optimiser: int
    """This GPU's part of master weights and two moments, fp32."""
    activations_kept: int
    """What the forward pass keeps for the backward pass."""
    activations_working: int
    """What is alive beside it in the backward pass of one layer, or of the output head: recomputed activations, and
    gradients on their way."""
    communication_buffers: int
    """DeepSpeed's gradient buckets, and the copy that is reduced."""
    reserved: int
    """As assumed."""
    total: int
    available: int
    """Memory of a GPU."""


class CollectivePlan(Resource):
    """One kind of communication in an optimiser step."""

    kind: Literal["all_to_all", "all_reduce", "all_gather"]
    purpose: str
    group_size: int
    """GPUs that take part."""
    calls: int
    """In a step."""
    bytes: int
    """Input of one GPU, over all calls."""
    nvlink_bytes: int
    """What the busiest GPU exchanges with others of its node, in one direction."""
    network_bytes: int
    """Likewise with other nodes."""
    seconds: float
    """By the slower of both links."""


class ComputePlan(Resource):
    """Seconds of computation in an optimiser step, by part."""

    attention_and_mlp_s: float
    """Forward and backward: projections, attention, residual MLPs, routers."""
    experts_s: float
    """Forward and backward, on the busiest GPU."""
    head_s: float
    """Output head."""
    recomputation_s: float
    """The layers' second forward pass, of activation checkpointing."""
    memory_traffic_s: float
    """What only moves numbers: norms, gates, copies, residual sums."""
    optimiser_s: float


class StepPlan(Resource):
    """How long an optimiser step takes."""

    compute: ComputePlan
    compute_s: float
    communication_s: float
    step_s: float
    """With the share of communication hidden that is assumed."""
    shortest_step_s: float
    """If all communication that can be was hidden behind computation."""
    tokens: int
    """Of a step, over all GPUs."""
    tokens_per_s: float
    model_flops_utilisation: float
    """Operations that the model needs, recomputation left out, as a share of the peak."""


class RunPlan(Resource):
    """How long the training takes. Preparation, evaluation, checkpoints and restarts come on top."""

    rows: int | None
    """Packed rows of an epoch; null when `train.max_steps` alone sets the end."""
    steps: int
    hours: float
    gpu_hours: float
    cost: float | None
    """GPU hours times the price, if one is given."""


class DataPlan(Resource):
    """Bytes that the job reads and leaves."""

    packed_bytes: int | None
    """Packed rows before compression: 4 bytes a token and 1 of its mask; null without `data.num_tokens`."""
    checkpoint_bytes: int
    """One checkpoint: 12 bytes a trained parameter."""
    checkpoints: int | None
    """Times that one is written."""
    kept_bytes: int
    """Checkpoints that lie there at once at the most, and the exported weights."""


class PlannedChange(Resource):
    """A change of the spec that needs less memory."""

    fields: dict[str, int | bool | str]
    """New values by dotted path."""
    total_bytes: int
    """Memory of a GPU with it."""
    fits: bool


class Plan(Resource):
    """What a job will need and take on given hardware."""

    num_params: int
    num_active_params: int
    nodes: int
    gpus: int
    memory: MemoryPlan
    fits: bool
    changes: list[PlannedChange]
    """What to change when it does not fit, the smallest change first; empty when it fits."""
    communication: list[CollectivePlan]
    step: StepPlan
    run: RunPlan | None
    """Null while nothing says how long the run is."""
    data: DataPlan
    hardware: HardwareSpec
    assumptions: Assumptions
    """What the figures rest on."""
