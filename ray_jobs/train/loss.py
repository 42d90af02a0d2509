"""The training loss: cross-entropy on completion tokens only, divided by the trained tokens of the global batch.

A process knows only its own rows, so it returns SUMS; the trainer divides by the all-reduced count. Normalising per
process or per micro-batch instead gives wrong gradients as soon as rows differ in completion tokens.

The output head is applied to the positions that predict a trained token and to no other, and to a part of the
vocabulary at a time: the logits of all of it never exist together unless they are few. The gradient follows from the
same logits, so it is computed at once, as Liger Kernel does; where the vocabulary is taken in parts, a part's logits
are computed once for the normaliser and once for the gradient, which is one product of the head more in three.

Shapes: T tokens, P trained positions, D hidden, V vocabulary, W words of a part of it, C categories.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from service.spec.train import LOGITS_AT_ONCE


def completion_loss(
    hidden_TD: Tensor,
    lm_head: nn.Linear,
    tokens_T: Tensor,
    trained_T: Tensor,
    *,
    scale: float,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each trained token given the tokens before it.

    Args:
        hidden_TD: the model's output.
        lm_head: output head, without bias.
        tokens_T: token ids.
        trained_T: true where the token is a target; never at a document's first token, which nothing predicts.
        scale: of the sum; 1 / the trained tokens that it is to be divided by.
        logits_at_once: how many may exist together.

    Returns:
        Scalar, fp32, the sum of all times `scale`, part of the graph also when nothing is trained; and [P] nats, fp32,
        in order of position, detached.
    """
    positions_P = trained_T.nonzero().flatten()
    hidden_PD, targets_P = hidden_TD[positions_P - 1], tokens_T[positions_P]
    words = max(1, logits_at_once // max(1, len(positions_P)))
    loss, losses_P = _CrossEntropy.apply(hidden_PD, lm_head.weight, targets_P, scale, words)  # type: ignore[no-untyped-call]
    return loss, losses_P


class _CrossEntropy(torch.autograd.Function):
    """The loss and, where it is wanted, its gradient, from logits of so many words at a time."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        hidden_PD, weight_VD, targets_P, scale, words = arguments
        starts = range(0, len(weight_VD), words)
        target_logits_P = hidden_PD.new_zeros(len(hidden_PD), dtype=torch.float32)
        normaliser_P = torch.full_like(target_logits_P, -torch.inf)
        for start in starts:
            logits_PW = (hidden_PD @ weight_VD[start : start + words].T).float()
            normaliser_P = torch.logaddexp(normaliser_P, logits_PW.logsumexp(1))
            rows, columns = _targets_within(targets_P, start, logits_PW.shape[1])
            target_logits_P[rows] = logits_PW[rows, columns]
        losses_P = normaliser_P - target_logits_P
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            only_part_PW = logits_PW if len(starts) == 1 else None
            gradients = _gradients(
                *arguments,
                normaliser_P=normaliser_P,
                only_part_PW=only_part_PW,
                is_head_trained=ctx.needs_input_grad[1],
            )
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses_P)
        return losses_P.sum() * scale, losses_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden_PD, grad_weight_VD = ctx.saved_tensors
        grad_weight_VD = None if grad_weight_VD is None else grad_weight_VD * gradients[0]
        return grad_hidden_PD * gradients[0], grad_weight_VD, None, None, None


def _gradients(
    hidden_PD: Tensor,
    weight_VD: Tensor,
    targets_P: Tensor,
    scale: float,
    words: int,
    *,
    normaliser_P: Tensor,
    only_part_PW: Tensor | None,
    is_head_trained: bool,
) -> tuple[Tensor, Tensor | None]:
    """Of the scaled sum: scale x (probability - 1 at the target) times weights, and times hidden states."""
    grad_hidden_PD = torch.zeros_like(hidden_PD, dtype=torch.float32)
    grad_weight_VD = torch.empty_like(weight_VD) if is_head_trained else None
    for start in range(0, len(weight_VD), words):
        weight_WD = weight_VD[start : start + words]
        logits_PW = (hidden_PD @ weight_WD.T).float() if only_part_PW is None else only_part_PW
        grad_logits_PW = logits_PW.sub_(normaliser_P[:, None]).exp_()
        rows, columns = _targets_within(targets_P, start, len(weight_WD))
        grad_logits_PW[rows, columns] -= 1
        grad_logits_PW = grad_logits_PW.mul_(scale).to(hidden_PD.dtype)
        if grad_weight_VD is not None:
            torch.mm(grad_logits_PW.T, hidden_PD, out=grad_weight_VD[start : start + words])
        grad_hidden_PD += grad_logits_PW @ weight_WD
    return grad_hidden_PD.to(hidden_PD.dtype), grad_weight_VD


def _targets_within(targets_P: Tensor, start: int, num_words: int) -> tuple[Tensor, Tensor]:
    """Positions whose target lies in a part of the vocabulary, and where in it."""
    rows = ((targets_P >= start) & (targets_P < start + num_words)).nonzero().flatten()
    return rows, targets_P[rows] - start


def sums_by_category(losses_P: Tensor, trained_T: Tensor, categories_T: Tensor, num_categories: int) -> Tensor:
    """Loss and trained tokens of each category.

    Args:
        losses_P: from `completion_loss`.
        trained_T: as there.
        categories_T: each token's category, 0 … C - 1.
        num_categories: C.

    Returns:
        [2, C] fp64, detached: sums of nats, counts of tokens.
    """
    categories_P = categories_T[trained_T]
    sums_2C = torch.zeros(2, num_categories, dtype=torch.float64, device=losses_P.device)
    sums_2C[0].index_add_(0, categories_P, losses_P.double())
    sums_2C[1] += categories_P.bincount(minlength=num_categories)
    return sums_2C
