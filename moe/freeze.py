"""The frozen-MoE mode: train the dense part, leave routers and experts as they are.

Far cheaper than full tuning (no gradient, optimiser state or gradient communication for 98 % of Arctic's weights), and
a useful approximation while iterating over data mixes. Gradients still flow THROUGH the experts to the layers below.
"""

from __future__ import annotations

from moe.model import HybridModel, MoE


def freeze_moe(model: HybridModel) -> None:
    """Stop every router and expert from being trained."""
    for module in model.modules():
        if isinstance(module, MoE):
            module.requires_grad_(requires_grad=False)
