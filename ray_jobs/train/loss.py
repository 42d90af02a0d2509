"""The training loss: cross-entropy on completion tokens only, divided by the trained tokens of the global batch.

A process knows only its own rows, so it returns SUMS; the trainer divides by the all-reduced count. Normalising per
process or per micro-batch instead gives wrong gradients as soon as rows differ in completion tokens.

The output head is applied to the positions that predict a trained token and to no other.

Shapes: T tokens, P trained positions, D hidden, V vocabulary, C categories.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def completion_losses(hidden_TD: Tensor, lm_head: nn.Linear, tokens_T: Tensor, trained_T: Tensor) -> Tensor:
    """Cross-entropy of each trained token given the tokens before it.

    Args:
        hidden_TD: the model's output.
        lm_head: output head, without bias.
        tokens_T: token ids.
        trained_T: true where the token is a target; never at a document's first token, which nothing predicts.

    Returns:
        [P] nats, fp32, in order of position; empty, but part of the graph, when nothing is trained.
    """
    positions_P = trained_T.nonzero().flatten()
    logits_PV = lm_head(hidden_TD[positions_P - 1])
    return F.cross_entropy(logits_PV.float(), tokens_T[positions_P], reduction="none")


def sums_by_category(losses_P: Tensor, trained_T: Tensor, categories_T: Tensor, num_categories: int) -> Tensor:
    """Loss and trained tokens of each category.

    Args:
        losses_P: from `completion_losses`.
        trained_T: as there.
        categories_T: each token's category, 0 … C - 1.
        num_categories: C.

    Returns:
        [2, C] fp64, detached: sums of nats, counts of tokens.
    """
    categories_P = categories_T[trained_T]
    sums_2C = torch.zeros(2, num_categories, dtype=torch.float64, device=losses_P.device)
    sums_2C[0].index_add_(0, categories_P, losses_P.detach().double())
    sums_2C[1] += categories_P.bincount(minlength=num_categories)
    return sums_2C
