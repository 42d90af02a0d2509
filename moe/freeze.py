"""Which weights are trained: all, the dense part, or the routers.

Frozen-MoE tuning is far cheaper than full tuning (no gradient, optimiser state or gradient communication for 98 % of
Arctic's weights), and a useful approximation while iterating over data mixes. Router-only tuning moves tokens between
experts that stay as they are: 32 million of Arctic's 479 billion weights. Gradients still flow THROUGH whatever is
frozen to the layers below: in router-only tuning down to the first layer's router.
"""

from __future__ import annotations

from moe.config import Tuning
from moe.model import HybridModel, MoE
from moe.router import Router


def freeze(model: HybridModel, tuning: Tuning) -> None:
    """Stop what a mode does not train from being trained."""
    if tuning == "full":
        return
    trains_routers = tuning == "router_only"
    model.requires_grad_(requires_grad=not trains_routers)
    for module in model.modules():
        if isinstance(module, Router if trains_routers else MoE):
            module.requires_grad_(requires_grad=trains_routers)
