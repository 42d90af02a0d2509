"""What one optimiser step says of itself.

Every worker adds up one vector of sums over its micro-batches; one all-reduce makes it the global batch's; only then is
anything divided. Nothing here costs another pass over the data.

Layout of the vector, for C categories, L layers, E experts: C sums of nats, C trained tokens, L balance-loss sums,
L entropy sums, L dropped token copies, L x E token copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from moe.config import MoEConfig
from ray_jobs.train.expert_load import max_over_mean


@dataclass(frozen=True)
class StepSums:
    """The summed vector of a global batch, by name.

    Attributes:
        nats_C: sum of the loss by category.
        trained_C: trained tokens by category.
        balance_L: tokens x normalised balance loss by layer, without k.
        entropy_L: nats of the gates' distributions by layer.
        dropped_L: token copies that no expert took, by layer.
        copies_LE: token copies by layer and expert, before any drop.
    """

    nats_C: Tensor
    trained_C: Tensor
    balance_L: Tensor
    entropy_L: Tensor
    dropped_L: Tensor
    copies_LE: Tensor

    @classmethod
    def from_vector(cls, vector: Tensor, num_categories: int, config: MoEConfig) -> StepSums:
        """Take the vector apart."""
        layers, experts = config.num_layers, config.num_experts
        sizes = [num_categories, num_categories, layers, layers, layers, layers * experts]
        nats_C, trained_C, balance_L, entropy_L, dropped_L, copies = vector.cpu().split(sizes)
        return cls(nats_C, trained_C, balance_L, entropy_L, dropped_L, copies.view(layers, experts))

    @property
    def loss(self) -> float:
        """Nats per trained token."""
        return float(self.nats_C.sum() / self.trained_C.sum())

    @property
    def num_copies_taken(self) -> float:
        """Token copies that experts have computed."""
        return float(self.copies_LE.sum() - self.dropped_L.sum())

    def loss_by_category(self, categories: Sequence[str]) -> dict[str, float]:
        """Nats per trained token of each category that has any."""
        return {
            name: float(nats / trained)
            for name, nats, trained in zip(categories, self.nats_C, self.trained_C, strict=True)
            if trained > 0
        }

    def describe(
        self, categories: Sequence[str], num_tokens: float, balance_loss_coefficient: float
    ) -> dict[str, object]:
        """The metrics of a `train.step` event that come from the model.

        Args:
            categories: names of C.
            num_tokens: real tokens of the global batch.
            balance_loss_coefficient: k; each layer's balance loss is k at perfect balance.
        """
        balance = [balance_loss_coefficient * float(value) / num_tokens for value in self.balance_L]
        dropped_L = self.dropped_L / self.copies_LE.sum(1)
        return {
            "loss": self.loss,
            "loss_by_category": self.loss_by_category(categories),
            "tokens": int(num_tokens),
            "trained_tokens": int(self.trained_C.sum()),
            "balance_loss": sum(balance),
            "balance_loss_floor": balance_loss_coefficient * len(balance),
            "balance_loss_per_layer": balance,
            "load_max_over_mean_per_layer": max_over_mean(self.copies_LE).tolist(),
            "dropped_fraction": float(dropped_L.mean()),
            "dropped_fraction_per_layer": dropped_L.tolist(),
            "router_entropy_per_layer": (self.entropy_L / num_tokens).tolist(),
            "dead_experts_per_layer": (self.copies_LE == 0).sum(1).tolist(),
        }
