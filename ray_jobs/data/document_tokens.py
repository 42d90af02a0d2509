"""Tokens and mask of many documents, one after another, and how they move."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ray_jobs.data.slices import copy_slices


class DocumentTokens(NamedTuple):
    """DocumentTokens one after another.

    Attributes:
        tokens: int32 [T].
        trained: bool [T].
        lengths: int64, summing to T.
    """

    tokens: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of_length(cls, lengths: np.ndarray) -> DocumentTokens:
        """Memory for such documents, not filled."""
        size = int(lengths.sum())
        return cls(np.empty(size, dtype=np.int32), np.empty(size, dtype=bool), lengths.astype(np.int64))

    @classmethod
    def of_table(cls, table: pa.Table | pa.RecordBatch) -> DocumentTokens:
        """What a table of `TOKENISED_SCHEMA` holds."""
        tokens, trained = (
            column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in table.columns
        )
        if not tokens.offsets.equals(trained.offsets) or (len(tokens) and tokens.offsets[0].as_py()):
            raise AssertionError("a part's tokens and mask do not go together")
        lengths = np.diff(tokens.offsets.to_numpy()).astype(np.int64)
        return cls(tokens.values.to_numpy(), trained.values.to_numpy(zero_copy_only=False), lengths)

    @property
    def starts(self) -> np.ndarray:
        """Where each document begins, int64."""
        starts: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return starts

    def copy(self, starts: np.ndarray, lengths: np.ndarray, to: DocumentTokens, places: np.ndarray) -> None:
        """Copy slices of tokens and mask.

        Args:
            starts: where each slice begins, in tokens.
            lengths: of each.
            to: documents whose memory is filled.
            places: where in that each slice goes.
        """
        copy_slices(self.tokens, starts, lengths, to.tokens, places)
        copy_slices(self.trained, starts, lengths, to.trained, places)

    def lists(self, borders: np.ndarray) -> list[pa.Array]:
        """Tokens and mask as Arrow lists, list i from document `borders[i]` to `borders[i + 1]`."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])[borders]
        here, places = slice(offsets[0], offsets[-1]), pa.array(offsets - offsets[0], pa.int32())
        return [pa.ListArray.from_arrays(places, pa.array(values[here])) for values in (self.tokens, self.trained)]
