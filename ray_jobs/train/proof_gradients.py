"""Loss and gradient of a few rows, however they are dealt out to workers and forward passes.

Gradients come from `torch.autograd.grad`, which leaves `.grad` alone and calls none of the hooks by which DeepSpeed
reduces gradients; no weight, no state of the optimiser and no random number is touched. They are those of some
parameters, and of experts only a part, so that memory stays small beside a step's. They add up in fp32, as DeepSpeed's
do.

Experts are chosen once, when the rows are first computed, and then held fixed (`ray_jobs.train.pinned_routing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.train.batches import TrainBatch, collate
from ray_jobs.train.engine import TrainingStep, all_reduce_sum
from ray_jobs.train.pinned_routing import LayerChoices, Nudges, pinned_routing, recorded_routing
from ray_jobs.train.step import global_counts

Way = Sequence[Sequence[int]]
"""Which rows, by number, this worker takes in each of its forward passes; all workers have equally many of these."""

_FIRST_LAYER = ("self_attn.k_proj.weight", "self_attn.v_proj.weight", "block_sparse_moe.experts.w2_EDF")
_ROWS_OF_EXPERT = 16
"""Of each expert's matrix that are compared: a layer's stack would be by far the largest of the gradients."""


def compared_parameters(model: HybridModel) -> dict[str, nn.Parameter]:
    """Every trained router and norm; of the first layer, where the backward pass ends, attention and experts too."""
    first = {f"layers.0.{name}" for name in _FIRST_LAYER}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.ndim == 1 or ".router." in name or name in first)
    }


@dataclass(frozen=True)
class Outcome:
    """What a way gave, the same on all workers.

    Attributes:
        loss: of the global batch.
        gradients: fp32, by parameter; of experts those of all workers.
        nudge: how far the gates' outputs had to be moved, see `Nudges`.
    """

    loss: float
    gradients: Mapping[str, Tensor]
    nudge: float

    @property
    def norm(self) -> float:
        """L2 norm of all gradients."""
        return _norm(self.gradients.values())

    def error_of(self, other: Outcome) -> float:
        """The largest of three errors relative to this outcome: of the loss, of the vector of gradients, and the nudge.

        The vector's norm is off by no more than the vector is.
        """
        difference = _norm(mine - other.gradients[name] for name, mine in self.gradients.items())
        return worst([_relative(difference, self.norm), _relative(abs(other.loss - self.loss), self.loss), other.nudge])


def worst(errors: Sequence[float]) -> float:
    """The largest error; NaN if any is, which `max` may pass over."""
    return math.nan if any(math.isnan(error) for error in errors) else max(errors)


def _relative(error: float, size: float) -> float:
    return error / max(abs(size), 1e-30)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in tensors))


class ProofBatch:
    """A small global batch, whose loss and gradient can be computed in several ways; all workers must do so together.

    Args:
        step: the model and its loss; not modified.
        rows: of the global batch, the same on all workers; None is a row that does not exist.
        categories: names, in the order of their indices.
    """

    def __init__(self, step: TrainingStep, rows: Sequence[PackedRow | None], categories: Sequence[str]) -> None:
        self._step, self._rows, self._categories = step, rows, categories
        self._device = step.model.lm_head.weight.device
        self._choices: dict[int, LayerChoices] = {}

    @property
    def num_rows(self) -> int:
        """Real rows."""
        return sum(row is not None for row in self._rows)

    def compute(self, way: Way, *, trained: bool) -> Outcome:
        """Take every row once.

        Args:
            way: this worker's part. The first way ever taken decides which experts the tokens go to.
            trained: without it no token is a target, and the balance loss is all that is left.
        """
        batches = [self._batch(numbers, trained=trained) for numbers in way]
        counts = global_counts(batches, self._device)
        gradients = _GradientSums(self._step.model)
        loss, nudge = torch.zeros((), dtype=torch.float64, device=self._device), 0.0
        is_first = not self._choices
        for numbers, batch in zip(way, batches, strict=True):
            with self._routing(numbers, is_first=is_first) as nudges:
                share, _ = self._step(batch, max(1.0, counts.trained), counts.tokens)
                gradients.add(share)
            loss += share.detach()
            nudge = max(nudge, nudges.largest)
        if is_first:
            self._share_choices()
        return Outcome(float(all_reduce_sum(loss)), gradients.of_all_workers(), largest_of_all(nudge, self._device))

    def _batch(self, numbers: Sequence[int], *, trained: bool) -> TrainBatch:
        batch = collate([self._rows[number] for number in numbers], self._categories, self._device)
        return batch if trained else replace(batch, trained_T=torch.zeros_like(batch.trained_T))

    @contextmanager
    def _routing(self, numbers: Sequence[int], *, is_first: bool) -> Iterator[Nudges]:
        """Note the choices of the rows in a forward pass, or repeat those that were noted."""
        model, real = self._step.model, [number for number in numbers if self._rows[number] is not None]
        if not real:
            yield Nudges()
        elif is_first:
            with recorded_routing(model) as choices:
                yield Nudges()
            lengths = [len(row.tokens) for number in real if (row := self._rows[number]) is not None]
            parts = zip(*(layer_TK.int().cpu().split(lengths) for layer_TK in choices), strict=True)
            self._choices |= {number: list(part) for number, part in zip(real, parts, strict=True)}
        else:
            layers = zip(*(self._choices[number] for number in real), strict=True)
            with pinned_routing(model, [torch.cat(layer).to(self._device, torch.int64) for layer in layers]) as nudges:
                yield nudges

    def _share_choices(self) -> None:
        everyone: list[dict[int, LayerChoices]] = [{}] * dist.get_world_size()
        dist.all_gather_object(everyone, self._choices)
        self._choices = {number: choices for each in everyone for number, choices in each.items()}


def largest_of_all(value: float, device: torch.device | str) -> float:
    """The largest value of any worker; all must call."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


class _GradientSums:
    """The compared gradients of this worker's forward passes, added up."""

    def __init__(self, model: HybridModel) -> None:
        self._first_expert = model.parallel.rank * (model.config.num_experts // model.parallel.size)
        self._parameters = compared_parameters(model)
        self._sums = {name: self._zeros(name, model.config.num_experts) for name in self._parameters}

    def add(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        for name, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                continue
            if ".experts." in name:
                mine = self._sums[name].narrow(0, self._first_expert, len(gradient))
                mine += gradient[:, :_ROWS_OF_EXPERT]
            else:
                self._sums[name] += gradient

    def of_all_workers(self) -> dict[str, Tensor]:
        """Add up over the workers; all must call, and none may call `add` any more."""
        return {name: all_reduce_sum(total) for name, total in self._sums.items()}

    def _zeros(self, name: str, num_experts: int) -> Tensor:
        parameter = self._parameters[name]
        shape = list(parameter.shape)
        if ".experts." in name:
            shape[:2] = num_experts, min(shape[1], _ROWS_OF_EXPERT)
        return torch.zeros(shape, dtype=torch.float32, device=parameter.device)
