"""What a forward pass keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def bytes_kept(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that a forward pass keeps for the backward pass, the module's weights left out.

    Args:
        module: with the weights.
        run: the forward pass.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # else its address could be another's later
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    sizes = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in kept)}
    return sum(size for address, size in sizes.items() if address not in weights)
