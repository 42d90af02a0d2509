"""Floating-point operations of the matrix products of a training step: for what is planned and for what was measured.

A product of an [M, N] and an [N, P] matrix takes 2 M N P operations. Going back takes as many for the gradient of what
came in, and as many again for that of the weights, unless they are frozen. Attention multiplies activations only, so
both its gradients are always needed.

Not counted, as is usual for a model's utilisation: what is computed a second time (activation checkpointing, scores in
the backward pass of fused attention, logits of a vocabulary taken in parts), and all that is no product (norms,
activations, softmax). Standard library only, so that the control plane can count.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe.config import MoEConfig, Tuning


@dataclass(frozen=True)
class TrainedParts:
    """Which weights are trained.

    Attributes:
        dense: embeddings, attention, residual MLPs, norms, output head.
        routers: the gates.
        experts: the experts.
    """

    dense: bool = True
    routers: bool = True
    experts: bool = True

    @classmethod
    def of(cls, tuning: Tuning) -> TrainedParts:
        """Of a mode of tuning."""
        return cls(tuning != "router_only", tuning != "frozen_moe", tuning == "full")


@dataclass(frozen=True)
class Operations:
    """Of a forward pass, by part.

    Attributes:
        config: the architecture.
        projections: queries, keys, values, output of the attention; residual MLPs.
        attention: scores, and sums weighted by them.
        routers: gates.
        experts: of the token copies that they take.
        head: output head, at the trained positions.
    """

    config: MoEConfig
    projections: float
    attention: float
    routers: float
    experts: float
    head: float

    @classmethod
    def of(
        cls, config: MoEConfig, *, tokens: float, attended: float, trained: float, copies: float | None = None
    ) -> Operations:
        """Count them.

        Args:
            config: the architecture.
            tokens: that go through the layers.
            attended: pairs of a token and one that it sees, itself included: `attended_pairs` of each document.
            trained: targets of the loss.
            copies: of tokens, that the experts of all layers take; by default nothing is dropped.
        """
        hidden, layers, kv = config.hidden_size, config.num_layers, config.num_kv_heads * config.head_dim
        if copies is None:
            copies = layers * config.top_k * tokens
        return cls(
            config,
            projections=2 * tokens * layers * hidden * (2 * hidden + 2 * kv + 3 * config.residual_size),
            attention=4 * attended * layers * hidden,
            routers=2 * tokens * config.num_router_params(),
            experts=2 * copies * config.num_expert_params,
            head=2 * trained * hidden * config.vocab_size,
        )

    @property
    def forward(self) -> float:
        """Of all parts."""
        return self.projections + self.attention + self.routers + self.experts + self.head

    def training(self, trained: TrainedParts) -> float:
        """Of the forward and the backward pass.

        Where the embeddings are frozen, nothing below the first layer is trained, so that layer passes no gradient on:
        only its router's or its experts' own weights get one.

        Args:
            trained: says which weights get a gradient.
        """
        layers = self.config.num_layers
        passed = 1.0 if trained.dense else (layers - 1) / layers
        in_layers = self.projections + 2 * self.attention + self.routers + self.experts
        of_weights = (
            trained.dense * (self.projections + self.head)
            + trained.routers * self.routers
            + trained.experts * self.experts
        )
        return self.forward + passed * in_layers + self.head + of_weights


def attended_pairs(length: float) -> float:
    """Pairs of a token of a document and one that it sees: itself, and all before it."""
    return length * (length + 1) / 2
