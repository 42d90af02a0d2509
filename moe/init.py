"""Random initialisation that does not depend on how the experts are spread.

Every published tensor draws from its own generator, seeded with its key, so a model has the same weights under any
expert-parallel size.
"""

from __future__ import annotations

import hashlib

import torch

from moe.hf import checkpoint_slices
from moe.model import HybridModel


def initialize(model: HybridModel, seed: int) -> None:
    """Fill the weights in place: norms with 1, all else from N(0, `initializer_range`)."""
    for key, tensor in checkpoint_slices(model):
        with torch.no_grad():
            if key.endswith(("layernorm.weight", "model.norm.weight")):
                tensor.fill_(1.0)
                continue
            digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            tensor.copy_(torch.empty(tensor.shape).normal_(0, model.config.initializer_range, generator=generator))
