"""Losses of documents in one packed row, beside those of each document alone.

In evaluation mode, since training may drop what a row has no room for, and the room depends on the row. Every token but
a document's first counts as a target here, the prompt's too: a document's first tokens, which know least, change most
if they see another document.

Shapes: P predicted tokens, T tokens, K experts a token, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from moe.model import HybridModel
from ray_jobs.data.packed_rows import PackedRow
from ray_jobs.evaluate.mode import evaluating
from ray_jobs.train.batches import TrainBatch, collate
from ray_jobs.train.engine import TrainingStep, all_reduce_sum
from ray_jobs.train.loss import completion_loss
from ray_jobs.train.pinned_routing import LayerChoices, Nudges, pinned_routing, recorded_routing
from ray_jobs.train.proof_gradients import largest_of_all
from ray_jobs.train.proof_rows import documents_of, joined


@dataclass(frozen=True)
class PackingOutcome:
    """What packing changed, over all workers.

    Attributes:
        error: nats, root mean square over tokens of the difference of losses.
        loss_rms: nats, root mean square of the losses.
        logit_rms: root mean square of the logits.
        document_error: nats, largest difference of a document's mean loss.
        nudge: how far the gates' outputs had to be moved, see `Nudges`.
        num_losses: predicted tokens.
        num_documents: compared.
    """

    error: float
    loss_rms: float
    logit_rms: float
    document_error: float
    nudge: float
    num_losses: int
    num_documents: int


@torch.no_grad()
def packed_against_alone(
    step: TrainingStep, rows: Sequence[PackedRow | None], categories: Sequence[str]
) -> PackingOutcome:
    """Compare; all workers must call, and all get the same.

    Args:
        step: the model; not modified.
        rows: this worker's; their documents are packed into one row.
        categories: names, in the order of their indices.
    """
    device = step.model.lm_head.weight.device
    documents = [_all_predicted(document) for row in rows if row is not None for document in documents_of(row)]
    turns = int(largest_of_all(len(documents), device))
    with evaluating(step):
        # whoever has no further document serves the others with its experts
        batches = [collate([row], categories, device) for row in (documents + [None] * turns)[:turns]]
        alone = [_alone(step.model, batch) for batch in batches][: len(documents)]
        batch = collate([joined(documents)] if documents else [None], categories, device)
        choices = [torch.cat(layer) for layer in zip(*(layers for _, layers in alone), strict=True)]
        with pinned_routing(step.model, choices) if documents else nullcontext(Nudges()) as nudges:
            hidden_TD, _ = step.model(batch.packed)
    packed_P = _losses(step.model, hidden_TD, batch)
    changes = [
        now_P - then_P for now_P, (then_P, _) in zip(packed_P.split([len(p) for p, _ in alone]), alone, strict=True)
    ]
    document_error = max((float(change_P.mean().abs()) for change_P in changes if len(change_P)), default=0.0)
    logits_PV = step.model.lm_head(hidden_TD[: packed_P.numel()])
    squares = [_sum_of_squares(values) for values in (torch.cat([packed_P[:0], *changes]), packed_P, logits_PV)]
    counts = packed_P.numel(), logits_PV.numel(), len(documents)
    sums = all_reduce_sum(torch.tensor([*squares, *counts], dtype=torch.float64, device=device))
    difference, loss, logit, num_losses, num_logits, num_documents = sums.tolist()
    return PackingOutcome(
        error=_root(difference, num_losses),
        loss_rms=_root(loss, num_losses),
        logit_rms=_root(logit, num_logits),
        document_error=largest_of_all(document_error, device),
        nudge=largest_of_all(nudges.largest, device),
        num_losses=int(num_losses),
        num_documents=int(num_documents),
    )


def _alone(model: HybridModel, batch: TrainBatch) -> tuple[Tensor, LayerChoices]:
    """[P] losses of one document, and the experts that its tokens chose."""
    with recorded_routing(model) as choices:
        hidden_TD, _ = model(batch.packed)
    return _losses(model, hidden_TD, batch), choices


def _losses(model: HybridModel, hidden_TD: Tensor, batch: TrainBatch) -> Tensor:
    return completion_loss(hidden_TD, model.lm_head, batch.packed.tokens_T, batch.trained_T, scale=1.0)[1]


def _all_predicted(document: PackedRow) -> PackedRow:
    return replace(document, trained=np.arange(len(document.tokens)) > 0)


def _sum_of_squares(values: Tensor) -> float:
    return float(values.float().square().sum(dtype=torch.float64))


def _root(sum_of_squares: float, count: float) -> float:
    return math.sqrt(sum_of_squares / max(1.0, count))
