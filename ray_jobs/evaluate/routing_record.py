"""Which experts held-out tokens go to, noted while their loss is computed: no second pass.

Every token's choices are counted, by category, layer and expert. Of some rows they are kept one by one, to be compared
with those that the model makes later: a layer's load may stay as it was while every token has moved.

Which rows those are depends on the rows alone, and not on the workers. They are spread evenly over all, for packing
puts the longest documents into the first rows. At most 64 rows of 4096 tokens keep 18 MB of Arctic's choices.

Shapes: T tokens of a row, K experts a token, C categories, L layers, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe.model import HybridModel
from moe.router import count_choices
from ray_jobs.evaluate.workers import on_all
from ray_jobs.train.batches import TrainBatch
from ray_jobs.train.engine import all_reduce_sum
from ray_jobs.train.pinned_routing import LayerChoices

_ROWS_KEPT = 64
_TOKENS_KEPT = 4096
"""Of each of these rows, from its beginning."""


@dataclass(frozen=True)
class KeptRow:
    """A row's choices, one by one.

    Attributes:
        experts_LTK: chosen experts, best first; uint8 or int16.
        categories_T: each token's category, as an index; int64.
    """

    experts_LTK: np.ndarray
    categories_T: np.ndarray


@dataclass(frozen=True)
class HeldOutRouting:
    """Where the held-out tokens of all workers go.

    Attributes:
        copies_CLE: token copies, int64, on the CPU.
        rows: those that were kept, by number.
    """

    copies_CLE: Tensor
    rows: dict[int, KeptRow]


class RoutingRecord:
    """What one worker notes of its rows.

    Args:
        model: the model.
        num_categories: C.
        num_rows: held-out rows of all workers.
    """

    def __init__(self, model: HybridModel, num_categories: int, num_rows: int) -> None:
        config = model.config
        shape = (config.num_layers, num_categories, config.num_experts)
        self._copies_LCE = torch.zeros(shape, dtype=torch.int64, device=model.lm_head.weight.device)
        self._kept_type = torch.uint8 if config.num_experts <= 2**8 else torch.int16
        self._stride = max(1, math.ceil(num_rows / _ROWS_KEPT))
        self._rows: dict[int, KeptRow] = {}

    def add(self, row: int, batch: TrainBatch, choices: LayerChoices) -> None:
        """Note one row.

        Args:
            row: its number.
            batch: of this row alone; one without tokens counts nothing.
            choices: that the model made for it.
        """
        experts_LTK = torch.stack(choices)[:, : batch.num_tokens]
        categories_T = batch.categories_T[: batch.num_tokens]
        layers, categories, experts = self._copies_LCE.shape
        cells_LT = torch.arange(layers, device=categories_T.device)[:, None] * categories + categories_T
        choices_N = (cells_LT[..., None] * experts + experts_LTK).flatten()
        self._copies_LCE += count_choices(choices_N, self._copies_LCE.numel()).view_as(self._copies_LCE)
        if batch.num_tokens and row % self._stride == 0:
            kept = experts_LTK[:, :_TOKENS_KEPT].to("cpu", self._kept_type).numpy()
            self._rows[row] = KeptRow(kept, categories_T[:_TOKENS_KEPT].cpu().numpy())

    def gather(self) -> HeldOutRouting:
        """What all workers noted; all must call."""
        copies_LCE = all_reduce_sum(self._copies_LCE.clone()).cpu()
        rows = {number: row for mine in on_all(lambda: self._rows) for number, row in mine.items()}
        return HeldOutRouting(copies_LCE.transpose(0, 1), dict(sorted(rows.items())))
