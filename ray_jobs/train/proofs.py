"""What a run proves of itself, in the worker group that will train: on the loaded model, with its own rows.

Before the first step of each start, in the time of about 20 forward passes of 512 tokens on each worker:

    router_gradient    the balance loss alone gives every router a gradient
    balance_loss       its value and gradient are the same however rows are dealt out
    gradient           so is the gradient of the whole loss
    packing            documents in one row have the losses that each has alone
    data               no row comes twice, none never

and after the last step `steps`: the optimiser has taken the steps that were planned.

The same rows are taken three ways: each worker two at once; two at once again, but one of them its neighbour's; one by
one, the gradients added up. So replicas, expert-parallel groups and accumulation are all compared, in training mode,
with whatever is dropped there. How DeepSpeed then reduces a step's gradients is not part of the proof.

Tolerances. A layer chains about 10 operations, each of which rounds its result by at most the number type's unit
roundoff u; by 0.4 u in the root mean square, two results by 0.6 u from one another. Over L layers and the head these
errors, independent of one another, stay below `u sqrt(10 L + 1)`. In fp32 the sums within a product round as well, each
of n terms: times sqrt(n). In bf16 they are kept in fp32. A gradient stands on a forward pass, the loss's own and a
backward pass: times sqrt(3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRow, PackedRows
from ray_jobs.train.batches import RowOrder, share_of_worker
from ray_jobs.train.cursor import data_cursor, repeated_and_skipped
from ray_jobs.train.engine import TrainingStep
from ray_jobs.train.proof_gradients import Outcome, ProofBatch, Way, worst
from ray_jobs.train.proof_packing import packed_against_alone
from ray_jobs.train.proof_rows import LONGEST_PROOF_ROW, ROWS_PER_WORKER, proof_rows
from service.errors import ProofError
from service.spec.train import TrainSpec

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Proof:
    """One claim, and what was measured.

    Attributes:
        name: of the claim.
        passed: whether it holds.
        measured: the error, or what else the claim is about; None where there is nothing to measure.
        tolerance: the largest error, or what else `detail` says; None likewise.
        detail: what was compared.
    """

    name: str
    passed: bool
    measured: float | None
    tolerance: float | None
    detail: str

    @classmethod
    def of_error(cls, name: str, error: float, tolerance: float, detail: str) -> Proof:
        """A claim that an error is small; one that is not a number is not."""
        return cls(name, error <= tolerance, error, tolerance, detail)

    @classmethod
    def nothing_to_measure(cls, name: str, reason: str) -> Proof:
        """A claim that says nothing of this run."""
        return cls(name, passed=True, measured=None, tolerance=None, detail=reason)

    def describe(self) -> dict[str, Any]:
        """Plain values, for an event."""
        return asdict(self)


def require(proofs: Sequence[Proof]) -> None:
    """Stop a run that has failed any.

    Raises:
        ProofError: names each of those, with its numbers.
    """
    reasons = [f"{p.name}: {p.measured}, tolerance {p.tolerance} ({p.detail})" for p in proofs if not p.passed]
    if reasons:
        raise ProofError("this run does not compute what it says; " + "; ".join(reasons))


def prove(
    step: TrainingStep,
    rows: PackedRows | Sequence[PackedRow],
    order: RowOrder,
    first_step: int,
    *,
    categories: Sequence[str],
    spec: TrainSpec,
    saved_cursor: dict[str, Any] | None = None,
) -> list[Proof]:
    """Measure all that can be known before the first step; all workers must call, and all get the same.

    Args:
        step: the model and its loss; not modified.
        rows: the training set.
        order: of the run.
        first_step: optimiser steps done.
        categories: names, in the order of their indices.
        spec: says what the balance loss is taken over, and whether there is any.
        saved_cursor: `data_cursor` of the checkpoint that the run goes on from.
    """
    taken = proof_rows(rows, order, first_step, dist.get_world_size())
    return [
        *prove_gradients(step, taken, categories, spec),
        prove_packing(step, taken, categories),
        prove_data(order, first_step, saved_cursor),
    ]


def tolerance(model: HybridModel, *, gradient: bool = False) -> float:
    """How far two results of the same rows may be apart, relative to their size; see the module's docstring.

    Args:
        model: number type, depth and widths count.
        gradient: of gradients, not of outputs.
    """
    config, dtype = model.config, model.lm_head.weight.dtype
    tokens_at_once = ROWS_PER_WORKER * LONGEST_PROOF_ROW
    longest_sum = max(config.hidden_size, config.expert_intermediate_size, config.residual_size, tokens_at_once)
    terms = longest_sum if dtype == torch.float32 else 1
    passes = 3 if gradient else 1
    return torch.finfo(dtype).eps / 2 * math.sqrt(terms * passes * (10 * config.num_layers + 1))


def prove_gradients(
    step: TrainingStep, rows: Sequence[PackedRow | None], categories: Sequence[str], spec: TrainSpec
) -> list[Proof]:
    """The proofs of the router, of the balance loss and of the gradient; all workers must call.

    Args:
        step: the model and its loss, in training mode.
        rows: from `proof_rows`.
        categories: names, in the order of their indices.
        spec: see `prove`.
    """
    batch, limit = ProofBatch(step, rows, categories), tolerance(step.model, gradient=True)
    mine, neighbours = (
        share_of_worker(numbers, dist.get_rank(), dist.get_world_size())
        for numbers in (range(len(rows)), [*range(1, len(rows)), 0])
    )
    others: dict[str, Way] = {"dealt to other workers": [neighbours]}
    if spec.balance_loss_unit == "row":
        others["accumulated row by row"] = [[number] for number in mine]
    whole = _compare(batch, [mine], others, trained=True)
    proofs = [whole.proof("gradient", limit)]
    if spec.balance_loss_coefficient == 0:
        reason = "not applicable: the balance loss has coefficient 0"
        return [Proof.nothing_to_measure(name, reason) for name in ("router_gradient", "balance_loss")] + proofs
    balance = _compare(batch, [mine], others, trained=False)
    return [_router_proof(balance.reference), balance.proof("balance_loss", limit), *proofs]


def _compare(batch: ProofBatch, way: Way, others: dict[str, Way], *, trained: bool) -> _Comparison:
    reference = batch.compute(way, trained=trained)
    return _Comparison(
        batch.num_rows, reference, {how: batch.compute(other, trained=trained) for how, other in others.items()}
    )


@dataclass(frozen=True)
class _Comparison:
    """A loss and its gradient, computed in several ways."""

    num_rows: int
    reference: Outcome
    others: dict[str, Outcome]

    def proof(self, name: str, limit: float) -> Proof:
        reference = self.reference
        errors = {how: reference.error_of(other) for how, other in self.others.items()}
        told = [f"{self.num_rows} rows, {len(reference.gradients)} parameters"]
        told.append(f"loss {reference.loss:.9g}, gradient norm {reference.norm:.9g}")
        told += [f"{how}: norm {other.norm:.9g}, error {errors[how]:.2g}" for how, other in self.others.items()]
        if len(errors) == 1:
            told.append("not accumulated row by row, since the balance loss is taken over the rows of a forward pass")
        return Proof.of_error(name, worst(list(errors.values())), limit, "; ".join(told))


def _router_proof(balance: Outcome) -> Proof:
    name = "router_gradient"
    norms = [float(gradient.norm()) for key, gradient in balance.gradients.items() if ".router." in key]
    if not norms:
        return Proof.nothing_to_measure(name, "not applicable: the routers are frozen")
    detail = f"smallest gradient norm of {len(norms)} routers, by the balance loss alone; must exceed the tolerance"
    return Proof(name, all(0 < norm < math.inf for norm in norms), min(norms), 0.0, detail)


def prove_packing(step: TrainingStep, rows: Sequence[PackedRow | None], categories: Sequence[str]) -> Proof:
    """Documents do not see each other; all workers must call.

    Args:
        step: the model and its loss.
        rows: from `proof_rows`.
        categories: names, in the order of their indices.
    """
    mine = share_of_worker(rows, dist.get_rank(), dist.get_world_size())
    outcome = packed_against_alone(step, mine, categories)
    limit = tolerance(step.model)
    # the loss moves as its logits do, and is rounded itself
    limit_nats = limit * outcome.logit_rms + 4 * torch.finfo(torch.float32).eps * outcome.loss_rms
    detail = (
        f"root mean square, in nats, over {outcome.num_losses} tokens of {outcome.num_documents} documents; largest "
        f"change of a document's mean loss {outcome.document_error:.2g}"
    )
    if not outcome.nudge <= limit:
        detail += f"; routing differs by {outcome.nudge:.2g}, more than rounding's {limit:.2g}"
        return Proof("packing", passed=False, measured=outcome.error, tolerance=limit_nats, detail=detail)
    return Proof.of_error("packing", outcome.error, limit_nats, detail)


def prove_data(order: RowOrder, step: int, saved_cursor: dict[str, Any] | None) -> Proof:
    """No row was or will be taken too often or too rarely; all workers must call.

    Args:
        order: of the run.
        step: optimiser steps done.
        saved_cursor: from the checkpoint.

    Raises:
        CheckpointError: the rows that it has trained on cannot be told any more.
    """
    now = data_cursor(order, step)
    cursors: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(cursors, now)
    rows = order.rows_of_step(step)
    dealt = [row for rank in range(len(cursors)) for row in share_of_worker(rows, rank, len(cursors))]
    failures = _failures(cursors, dealt == rows)
    if saved_cursor is None and step > 0 and not failures:
        return Proof.nothing_to_measure("data", "not proven: the checkpoint does not tell which rows it has trained on")
    repeated, skipped = repeated_and_skipped(saved_cursor or now, order, step)
    detail = (
        f"{repeated} examples repeated, {skipped} skipped; {now['rows_consumed']} of {order.num_positions} consumed"
    )
    passed = not (repeated or skipped or failures)
    return Proof("data", passed, float(repeated + skipped), 0.0, "; ".join([detail, *failures]))


def _failures(cursors: Sequence[dict[str, Any]], is_dealt_once: bool) -> list[str]:
    told = {
        "the workers do not agree on the order of rows": all(cursor == cursors[0] for cursor in cursors),
        "the next step's rows are not dealt out once each": is_dealt_once,
    }
    return [reason for reason, holds in told.items() if not holds]


def prove_step_count(engine: DeepSpeedEngine, planned: int, skipped: int = 0) -> Proof:
    """The optimiser has taken every planned step; all workers must call.

    Its own counter is asked: it goes on from a checkpoint's step, and moves only when weights do.

    Args:
        engine: after the last step.
        planned: steps of the whole run.
        skipped: of these, how many were left out on purpose, their gradient being unfit.
    """
    mine = {int(state["step"]) for state in engine.optimizer.optimizer.state.values()}
    everyone: list[set[int]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    counts = sorted(set().union(*everyone))
    detail = f"optimiser steps taken {counts}, skipped {skipped}, planned {planned}; measured is how many are missing"
    missing = float(max(abs(planned - skipped - count) for count in counts))
    return Proof.of_error("steps", missing, 0.0, detail)
