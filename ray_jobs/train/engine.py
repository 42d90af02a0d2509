"""From the spec to a DeepSpeed engine: the one place where its configuration is made.

ZeRO-2 shards gradients and optimiser state over the data-parallel workers. Experts are different: a worker's experts
are shared only with the workers of the same place in other expert-parallel groups, its expert-data-parallel group. A
parameter says so by two attributes that DeepSpeed reads, `allreduce = False` and `group_name`.

Gradients are SUMMED over workers (`gradient_allreduce_op`), since the loss is already divided by the token count of the
whole global batch.

DeepSpeed is imported inside functions: importing it in the driver of a CPU-only Ray actor can crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe.balance import Balancing
from moe.dispatch import ExpertParallel
from moe.experts import Experts
from moe.model import HybridModel
from ray_jobs.train.batches import TrainBatch
from ray_jobs.train.loss import completion_loss, sums_by_category
from service.spec.job import JobSpec

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


_EXPERTS = "experts"


def import_deepspeed() -> Any:
    """DeepSpeed, without its shared-memory reduction for CPUs, and without compiling its optimizer Muon.

    That reduction is compiled at its first use, under a lock file; a worker killed meanwhile leaves the file behind,
    and every later job on the machine waits for it for ever. gloo reduces as well, and needs no compiler. Muon is only
    asked whether our optimizer is one; to mark its functions for PyTorch's compiler would import all of that, two
    seconds of a processor at every worker's start.
    """
    import deepspeed
    from deepspeed.runtime import compiler

    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def expert_parallel_group(size: int) -> ExpertParallel:
    """The group of consecutive workers that share the experts; all workers must call.

    Args:
        size: workers in a group; 1 means that each worker holds all experts.
    """
    if size == 1:
        return ExpertParallel()
    deepspeed = import_deepspeed()
    from deepspeed.utils import groups

    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
    name = f"ep_size_{size}"
    groups._create_expert_and_data_parallel(size)  # noqa: SLF001  the way that DeepSpeed's own layers take
    return ExpertParallel(groups._get_expert_parallel_group(name))  # noqa: SLF001


def balancing(spec: JobSpec) -> Balancing:
    """What keeps tokens from crowding into few experts."""
    per_batch = spec.train.balance_loss_unit == "batch"
    return Balancing(spec.train.capacity_factor, dist.group.WORLD if per_batch else None)


def deepspeed_config(spec: JobSpec, num_workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a job, on so many workers."""
    rows_at_once = spec.train.micro_batch_rows * num_workers
    return {
        "train_micro_batch_size_per_gpu": spec.train.micro_batch_rows,
        "gradient_accumulation_steps": spec.train.global_batch_rows // rows_at_once,
        "train_batch_size": spec.train.global_batch_rows,
        "gradient_clipping": spec.train.gradient_clip_norm,
        "gradient_allreduce_op": "sum",
        "bf16": {"enabled": spec.train.precision == "bf16"},
        # added up in bf16, 128 micro-batches' gradients were off by 1.4 %, all other rounding in bf16 by 0.6 %
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": torch.cuda.is_available(),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


class TrainingStep(nn.Module):
    """A micro-batch's share of the loss, as one module for the engine to drive.

    Args:
        model: the model.
        balance_loss_coefficient: k.
        num_categories: C, for the sums by category.
    """

    def __init__(self, model: HybridModel, balance_loss_coefficient: float, num_categories: int) -> None:
        super().__init__()
        self.model = model
        self._balance_loss_coefficient = balance_loss_coefficient
        self._num_categories = num_categories

    def forward(self, batch: TrainBatch, global_trained: float, global_tokens: float) -> tuple[Tensor, Tensor]:
        """Loss share and metrics.

        Args:
            batch: T tokens.
            global_trained: trained tokens of the global batch, over all workers and micro-batches.
            global_tokens: likewise all its tokens.

        Returns:
            Scalar whose sum over micro-batches and workers is the loss of the global batch; and the metrics that
            `ray_jobs.train.metrics` reads, sums too, detached.
        """
        hidden_TD, balances = self.model(batch.packed)
        loss, losses_P = completion_loss(
            hidden_TD, self.model.lm_head, batch.packed.tokens_T, batch.trained_T, scale=1 / global_trained
        )
        balance_sums = torch.stack([balance.loss_sum for balance in balances])
        loss = loss + self._balance_loss_coefficient * balance_sums.sum() / global_tokens
        by_category = sums_by_category(losses_P, batch.trained_T, batch.categories_T, self._num_categories)
        counts = torch.stack([balance.tokens_per_expert_E for balance in balances])
        entropies = torch.stack([balance.entropy_sum for balance in balances])
        dropped = torch.stack([balance.dropped for balance in balances])
        parts = [by_category.flatten(), balance_sums.detach(), entropies, dropped, counts.flatten()]
        return loss, torch.cat([part.double() for part in parts])


def build_engine(step: TrainingStep, spec: JobSpec) -> DeepSpeedEngine:
    """Wrap the model for training; all workers must call.

    Args:
        step: holds the model, weights filled in; frozen parameters already marked.
        spec: the job's.
    """
    deepspeed = import_deepspeed()
    parallel = step.model.parallel
    if parallel.size > 1:
        _mark_experts(step, parallel.size)
    optimizer = torch.optim.AdamW(
        _parameter_groups(step, spec),
        lr=spec.train.learning_rate,
        betas=spec.train.adam_betas,
        eps=spec.train.adam_eps,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=step, optimizer=optimizer, config=deepspeed_config(spec, dist.get_world_size()), dist_init_required=False
    )
    return engine


def _mark_experts(step: TrainingStep, size: int) -> None:
    """Tell DeepSpeed which parameters are experts, and that some of them are trained.

    Frozen experts are marked too: at the start it copies worker 0's unmarked parameters over everyone's. It turns on
    its expert paths only when it finds a module of its own `MoE` class, so one without content is added.
    """
    from deepspeed.moe.layer import MoE

    class ExpertParallelMarker(MoE):  # type: ignore[misc]
        def __init__(self, num_experts: int) -> None:
            nn.Module.__init__(self)
            self.num_experts = num_experts

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            """The groups exist already."""

    parameters = _expert_parameters(step)
    for parameter in parameters:
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = f"ep_size_{size}"  # type: ignore[attr-defined]
    if any(parameter.requires_grad for parameter in parameters):
        step.add_module("expert_parallel_marker", ExpertParallelMarker(step.model.config.num_experts))


def _expert_parameters(step: TrainingStep) -> list[nn.Parameter]:
    experts = [module for module in step.modules() if isinstance(module, Experts)]
    return [parameter for module in experts for parameter in module.parameters()]


def _parameter_groups(step: TrainingStep, spec: JobSpec) -> list[dict[str, Any]]:
    from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer

    trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
    in_experts = {id(parameter) for parameter in _expert_parameters(step)}
    experts = [parameter for parameter in trained if id(parameter) in in_experts]
    dense = [parameter for parameter in trained if id(parameter) not in in_experts]
    matrices = [parameter for parameter in dense if parameter.ndim > 1]
    norms = [parameter for parameter in dense if parameter.ndim == 1]
    groups = [
        {"name": "matrices", "params": matrices, "weight_decay": spec.train.weight_decay},
        {"name": "norms", "params": norms, "weight_decay": 0.0},
        {"name": _EXPERTS, "params": experts, "weight_decay": spec.train.weight_decay},
    ]
    if any(is_moe_param(parameter) for parameter in trained):
        groups = split_params_into_different_moe_groups_for_optimizer(groups, max_group_size=2**62)
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class GradientNorms:
    """L2 norms of a global batch's gradient, before clipping; not finite where it is not.

    Attributes:
        dense: of all that is no expert.
        expert: of all experts.
    """

    dense: float
    expert: float


def gradient_norms(engine: DeepSpeedEngine) -> GradientNorms:
    """Of the accumulated gradient, before the step that takes it; all workers must call.

    ZeRO-2 leaves each element with one worker, those of experts too, so the squares of all workers add up.
    """
    squares = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for index, group in enumerate(engine.optimizer.optimizer.param_groups):
        is_expert = bool(group.get("moe")) or group["name"] == _EXPERTS
        for gradient in engine.optimizer.averaged_gradients[index]:
            squares[int(is_expert)] += torch.linalg.vector_norm(gradient, dtype=torch.float32).double().square()
    dense, expert = all_reduce_sum(squares).sqrt().tolist()
    return GradientNorms(dense, expert)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all workers, in place; all must call."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def alone_among_workers(value: float, device: torch.device | str) -> Tensor:
    """This worker's value at its own place, zeros at all others': their sum over the workers is the list of all.

    Args:
        value: kept exactly up to 2^53.
        device: where the workers communicate.
    """
    rank, num_workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    values_W = torch.zeros(num_workers, dtype=torch.float64, device=device)
    values_W[rank] = value
    return values_W
