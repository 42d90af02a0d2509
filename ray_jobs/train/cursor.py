"""Which rows a checkpoint has trained on, kept beside it, and whether the rest of the run gives each other row once.

The order of rows is computed anew at each start, so what is kept is no position but evidence: the stream's parameters
and a hash of the rows that were consumed. A resumed run rebuilds that prefix and counts, row by row, prefix and rest
together. A changed seed, number of rows or batch shows as rows that come too often or not often enough; a library that
shuffles otherwise than the one before (NumPy does not promise the same numbers in every version) as another hash.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ray_jobs.train.batches import RowOrder
from service.errors import CheckpointError


def data_cursor(order: RowOrder, step: int) -> dict[str, Any]:
    """What to keep beside a checkpoint; plain values.

    Args:
        order: of the run.
        step: optimiser steps done.
    """
    num_consumed = min(step * order.global_batch_rows, order.num_positions)
    return {
        "seed": order.seed,
        "num_rows": order.num_rows,
        "epochs": order.epochs,
        "global_batch_rows": order.global_batch_rows,
        "step": step,
        "rows_consumed": num_consumed,
        "sha256": _hash(order.rows_between(0, num_consumed)),
    }


def repeated_and_skipped(saved: dict[str, Any], order: RowOrder, step: int) -> tuple[int, int]:
    """How often any row would come too often, and how often too rarely, if the run went on.

    Args:
        saved: from `data_cursor`, at the checkpoint.
        order: of the run that goes on.
        step: the optimiser step it goes on with.

    Raises:
        CheckpointError: the consumed rows cannot be told any more.
    """
    then = RowOrder(saved["num_rows"], saved["epochs"], saved["global_batch_rows"], saved["seed"])
    consumed = then.rows_between(0, saved["rows_consumed"])
    if _hash(consumed) != saved["sha256"]:
        raise CheckpointError(
            "the order of rows up to the checkpoint cannot be computed again: it was made by another version of NumPy, "
            "or the record is damaged"
        )
    start = step * order.global_batch_rows
    surplus = np.full(max(then.num_rows, order.num_rows), -order.epochs)
    surplus[order.num_rows :] = 0
    surplus += np.bincount(consumed, minlength=len(surplus))
    for position in range(start, order.num_positions, order.num_rows):
        surplus += np.bincount(order.rows_between(position, position + order.num_rows), minlength=len(surplus))
    return int(surplus.clip(min=0).sum()), int((-surplus).clip(min=0).sum())


def check_cursor(saved: dict[str, Any], order: RowOrder, step: int) -> None:
    """Refuse to go on from a checkpoint if rows would be repeated or skipped.

    Args:
        saved: from `data_cursor`, at the checkpoint.
        order: of the run that goes on.
        step: the optimiser step it goes on with.

    Raises:
        CheckpointError: they would; the message counts them.
    """
    repeated, skipped = repeated_and_skipped(saved, order, step)
    if repeated or skipped:
        raise CheckpointError(
            f"going on at step {step} would repeat {repeated} rows and skip {skipped}: the checkpoint of step "
            f"{saved['step']} consumed {saved['rows_consumed']} rows of {saved['num_rows']} x {saved['epochs']} in "
            f"batches of {saved['global_batch_rows']}, seed {saved['seed']}; this run has {order.num_rows} x "
            f"{order.epochs} in batches of {order.global_batch_rows}, seed {order.seed}"
        )


def _hash(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
