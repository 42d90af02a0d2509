"""Have a model send tokens to the experts that it chose for them before, where only rounding would choose others.

Two computations of the same numbers in another order differ by rounding. A token whose second and third expert are
closer than that may change its expert, and the result is then another by far more than rounding. In bf16 and with many
layers this happens to some token nearly always, so results can be compared only with the choices held fixed.

The gate's outputs are raised by just so much that the former choice wins, and the router does the rest as always. How
much was needed is measured: what exceeds rounding is no tie, but another computation.

Shapes: T tokens, S tokens of a row, E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from moe.model import HybridModel
from moe.router import Router, Routing

_MARGIN = 2.0**-20
"""By which a choice wins, relative to the largest output of the gate or to 1: probabilities, in fp32, still differ."""

LayerChoices = list[Tensor]
"""Of each layer [S, K] or [T, K], best first."""


@contextmanager
def recorded_routing(model: HybridModel) -> Iterator[LayerChoices]:
    """Note which experts each layer chooses within the block.

    Layers that are computed anew for the backward pass are noted once.
    """
    noted: dict[int, Tensor] = {}
    choices: LayerChoices = []

    def note(router: nn.Module, _arguments: object, routing: Routing) -> None:
        if id(router) not in noted:
            noted[id(router)] = routing.experts_TK
            choices.append(routing.experts_TK)

    with ExitStack() as hooks:
        for router in _routers(model):
            hooks.callback(router.register_forward_hook(note).remove)
        yield choices


class Nudges:
    """How far the gate's outputs had to be moved.

    Attributes:
        largest: of all layers and tokens, beyond the margins, relative to the layer's largest output.
    """

    def __init__(self) -> None:
        self.largest = 0.0

    def add(self, logits_TE: Tensor, experts_TK: Tensor) -> Tensor:
        """The outputs with which the router chooses `experts_TK`; fp32."""
        logits_TE = logits_TE.float()
        moved_TE, relative = _raised(logits_TE.detach(), experts_TK)
        self.largest = max(self.largest, float(relative))
        return logits_TE + moved_TE


@contextmanager
def pinned_routing(model: HybridModel, choices: LayerChoices) -> Iterator[Nudges]:
    """Repeat the choices of each layer within the block, the backward pass included.

    Args:
        model: computes the same tokens as when they were recorded, if in other company.
        choices: of each layer, [T, K] of the tokens in their order now.
    """
    nudges = Nudges()
    with ExitStack() as hooks:
        for router, experts_TK in zip(_routers(model), choices, strict=True):

            def nudge(_gate: nn.Module, _arguments: object, logits_TE: Tensor, chosen: Tensor = experts_TK) -> Tensor:
                return nudges.add(logits_TE, chosen)

            hooks.callback(router.gate.register_forward_hook(nudge).remove)
        yield nudges


def _raised(logits_TE: Tensor, experts_TK: Tensor) -> tuple[Tensor, Tensor]:
    """What to add so that each choice exceeds the next one by the margin, and the last one all others."""
    scale = logits_TE.abs().max()
    margin = _MARGIN * scale.clamp(min=1)
    values_TK = logits_TE.gather(1, experts_TK)
    below_T = logits_TE.scatter(1, experts_TK, float("-inf")).amax(1)
    raised = []
    for value_T in reversed(values_TK.unbind(1)):
        below_T = torch.maximum(value_T, below_T + margin)
        raised.append(below_T)
    moved_TK = torch.stack(raised[::-1], 1) - values_TK
    beyond = (moved_TK.max() - margin * moved_TK.shape[1]).clamp(min=0)
    relative = beyond / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return torch.zeros_like(logits_TE).scatter(1, experts_TK, moved_TK), relative


def _routers(model: HybridModel) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]
