"""The experts that one process owns: SwiGLU networks with stacked weights, applied to contiguous blocks of tokens.

Shapes: M token copies, E local experts, D hidden, F expert intermediate size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.config import MoEConfig


class Experts(nn.Module):
    """`w2(silu(w1 x) * w3 x)` for each local expert.

    Args:
        config: the architecture.
        num_local: experts that this process owns.
    """

    def __init__(self, config: MoEConfig, num_local: int) -> None:
        super().__init__()
        hidden, intermediate = config.hidden_size, config.expert_intermediate_size
        self.w1_EFD = nn.Parameter(torch.empty(num_local, intermediate, hidden))
        self.w2_EDF = nn.Parameter(torch.empty(num_local, hidden, intermediate))
        self.w3_EFD = nn.Parameter(torch.empty(num_local, intermediate, hidden))

    def forward(self, x_MD: Tensor, splits: list[int]) -> Tensor:
        """Apply each expert to its block.

        Args:
            x_MD: copies sorted by local expert.
            splits: copies of each local expert; zeros are fine, the experts' gradients are then zeros, never None.

        Returns:
            [M, D].
        """
        # unbind, not indexing: its backward stacks the gradients once instead of adding E full-size ones
        weights = zip(self.w1_EFD.unbind(), self.w2_EDF.unbind(), self.w3_EFD.unbind(), strict=True)
        blocks = [
            F.linear(F.silu(F.linear(x_BD, w1_FD)) * F.linear(x_BD, w3_FD), w2_DF)
            for x_BD, (w1_FD, w2_DF, w3_FD) in zip(x_MD.split(splits), weights, strict=True)
        ]
        return torch.cat(blocks)
