"""What a forward pass keeps, and what both passes hold at their worst."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


class MostBytes(TorchDispatchMode):
    """Most bytes that results of operations took together, seen below autograd.

    Args:
        module: whose weights are left out; their gradients are dropped as soon as they are there.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._weights:
                storage = StorageWeakRef(tensor.untyped_storage())
                self._live[storage.cdata] = storage, tensor.untyped_storage().nbytes()
        self._live = {key: (storage, size) for key, (storage, size) in self._live.items() if not storage.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return out
