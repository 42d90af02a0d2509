"""Which packed rows a worker trains on at a step, and how they become one flat batch.

The order is a pure function of (seed, number of rows, step): a restarted run, or one on another number of workers,
goes on at exactly the next row, and no cursor needs to be saved beside the step. The rows of all epochs form one
stream, each epoch in its own random order; a step takes the next `global_batch_rows` of it. Past the stream's end
there are no rows: the last batch is filled up with empty ones, which weigh nothing, so that no row is dropped and every
worker still takes part in every collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from moe.attention import Documents
from moe.model import PackedBatch
from moe.operations import attended_pairs
from ray_jobs.data.packed_rows import PackedRow

Row = TypeVar("Row")


@dataclass(frozen=True)
class RowOrder:
    """The stream of row numbers of a run.

    Attributes:
        num_rows: packed rows of the training set.
        epochs: passes over them.
        global_batch_rows: rows of a step, over all workers.
        seed: of the shuffles.
    """

    num_rows: int
    epochs: int
    global_batch_rows: int
    seed: int

    @property
    def num_positions(self) -> int:
        """Length of the stream."""
        return self.num_rows * self.epochs

    def rows_between(self, start: int, stop: int) -> np.ndarray:
        """Row numbers at positions [start, stop) of the stream, as far as it goes; int64."""
        epochs = range(start // self.num_rows, min(self.epochs, -(-stop // self.num_rows)))
        parts = [self._order(e)[max(0, start - e * self.num_rows) : stop - e * self.num_rows] for e in epochs]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def rows_of_step(self, step: int) -> list[int | None]:
        """Row numbers of a whole global batch; None past the end of the stream."""
        start = step * self.global_batch_rows
        rows: list[int | None] = self.rows_between(start, start + self.global_batch_rows).tolist()
        return rows + [None] * (self.global_batch_rows - len(rows))

    def epoch_of_step(self, step: int) -> float:
        """Epochs completed when the step begins, as a fraction."""
        return min(self.epochs, step * self.global_batch_rows / self.num_rows)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)


def share_of_worker(rows: Sequence[Row], rank: int, num_workers: int) -> Sequence[Row]:
    """The consecutive part of a global batch that one worker computes; all parts are equally long."""
    share = len(rows) // num_workers
    return rows[rank * share : (rank + 1) * share]


@dataclass(frozen=True)
class TrainBatch:
    """A micro-batch, with what the loss needs.

    Attributes:
        packed: the model's input, T tokens.
        trained_T: true where a token is a target of the loss.
        categories_T: each token's category, as an index.
    """

    packed: PackedBatch
    trained_T: Tensor
    categories_T: Tensor

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(self.packed.row_lengths)

    @property
    def num_attended(self) -> float:
        """Pairs of a real token and one that it sees."""
        return sum(map(attended_pairs, self.packed.documents.lengths)) if self.num_tokens else 0

    @property
    def num_trained(self) -> int:
        """Targets of the loss."""
        return int(self.trained_T.sum())


def collate(rows: Sequence[PackedRow | None], categories: Sequence[str], device: torch.device | str) -> TrainBatch:
    """Lay rows one after another, without padding; Nones are left out.

    Args:
        rows: of one micro-batch.
        categories: names, in the order of their indices.
        device: of the tensors.
    """
    real = [row for row in rows if row is not None]
    if not real:
        return _empty(device)
    lengths = np.concatenate([row.document_lengths for row in real])
    names = [name for row in real for name in row.document_categories]
    categories_T = np.repeat([categories.index(name) for name in names], lengths)
    return TrainBatch(
        PackedBatch(
            torch.as_tensor(np.concatenate([row.tokens for row in real]), dtype=torch.int64, device=device),
            Documents.from_lengths(lengths.tolist(), device),
            tuple(len(row.tokens) for row in real),
        ),
        torch.as_tensor(np.concatenate([row.trained for row in real]), device=device),
        torch.as_tensor(categories_T, dtype=torch.int64, device=device),
    )


def _empty(device: torch.device | str) -> TrainBatch:
    """One token, of no row."""
    token = torch.zeros(1, dtype=torch.int64, device=device)
    return TrainBatch(PackedBatch(token, Documents.from_lengths([1], device), (0,)), token.bool(), token)
