"""Evaluation mode, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block a model drops no tokens, whatever it does in training; behind it the former mode is back."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
