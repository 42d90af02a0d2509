"""The dense-MoE hybrid of Snowflake Arctic.

    a   = x + Attention(input_layernorm(x))
    r   = a + residual_mlp(residual_layernorm(a))
    out = r + MoE(post_attention_layernorm(x))        # reads the layer's INPUT

The MoE's independence of the attention is the architecture's point: its communication runs beside the dense part's
computation.

Shapes: T tokens of a flat packed batch, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe.attention import Attention, Documents, LayerCache, rotary_table
from moe.balance import Balancing, LayerBalance, layer_balance
from moe.capacity import drop_over_capacity
from moe.config import MoEConfig
from moe.dispatch import Dispatched, ExpertParallel, combine, dispatch, receive, send_home
from moe.exchange import Travelling
from moe.experts import Experts
from moe.functional import gate, rms_norm
from moe.router import Router


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows laid one after another, without padding.

    Attributes:
        tokens_T: int64 token ids.
        documents: borders of the documents, for attention.
        row_lengths: tokens of each packed row, for the balance loss; what lies behind the rows counts nowhere.
    """

    tokens_T: Tensor
    documents: Documents
    row_lengths: tuple[int, ...]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.eps = config.norm_eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise each token."""
        return rms_norm(x_TD, self.weight, self.eps)


class ResidualMLP(nn.Module):
    """The dense SwiGLU beside the MoE."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.residual_size, bias=False)
        self.w2 = nn.Linear(config.residual_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.residual_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """`w2(silu(w1 x) * w3 x)`."""
        out: Tensor = self.w2(gate(self.w1(x_TD), self.w3(x_TD)))
        return out


class MoE(nn.Module):
    """Router, dispatch, experts, combine."""

    def __init__(self, config: MoEConfig, parallel: ExpertParallel, balancing: Balancing | None = None) -> None:
        super().__init__()
        if config.num_experts % parallel.size:
            raise ValueError(f"expert-parallel size {parallel.size} does not divide {config.num_experts} experts")
        self.num_experts, self.parallel = config.num_experts, parallel
        self.balancing = balancing or Balancing()
        self.router = Router(config)
        self.experts = Experts(config, config.num_experts // parallel.size)

    def forward(self, x_TD: Tensor, row_lengths: tuple[int, ...]) -> tuple[Tensor, LayerBalance]:
        """Mix the chosen experts of each token; every process of the expert-parallel group must call."""
        dispatched, balance = self.dispatch(x_TD, row_lengths)
        return combine(self.run_experts(dispatched), dispatched), balance

    def dispatch(self, x_TD: Tensor, row_lengths: tuple[int, ...]) -> tuple[Dispatched, LayerBalance]:
        """The first part of `forward`: choose experts and send the tokens off to them."""
        routing = self.router(x_TD)
        balancing = self.balancing if self.training else Balancing()
        if balancing.capacity_factor is not None:
            routing = drop_over_capacity(routing, row_lengths, balancing.capacity_factor)
        balance = layer_balance(routing, row_lengths, balancing.loss_group)
        return dispatch(x_TD, routing, self.num_experts, self.parallel), balance

    def run_experts(self, dispatched: Dispatched) -> Travelling:
        """The second part: apply the experts to what has arrived, and send it home, to be combined."""
        return send_home(self.experts(receive(dispatched), dispatched.counts_E), dispatched)


class HybridLayer(nn.Module):
    """One layer, as in the module's docstring."""

    def __init__(self, config: MoEConfig, parallel: ExpertParallel, balancing: Balancing | None) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.residual_layernorm = RMSNorm(config)
        self.residual_mlp = ResidualMLP(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.block_sparse_moe = MoE(config, parallel, balancing)

    def forward(
        self, x_TD: Tensor, batch: PackedBatch, rotary: tuple[Tensor, Tensor], cache: LayerCache | None
    ) -> tuple[Tensor, LayerBalance]:
        """[T, D] to [T, D]; tokens travel to their experts beside the attention, and home beside the residual MLP."""
        moe = self.block_sparse_moe
        dispatched, balance = moe.dispatch(self.post_attention_layernorm(x_TD), batch.row_lengths)
        a_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), batch.documents, rotary, cache)
        returning = moe.run_experts(dispatched)
        r_TD = a_TD + self.residual_mlp(self.residual_layernorm(a_TD))
        return r_TD + combine(returning, dispatched), balance


class HybridModel(nn.Module):
    """Embedding, layers, final norm, output head.

    Args:
        config: the architecture.
        parallel: the processes that share the experts; this one holds its part of them only.
        balancing: of the experts' load in training; by default nothing is dropped, and each row balanced by itself.
        activation_checkpointing: keep only each layer's input for the backward pass, which computes the layer anew.

    Weights are uninitialised: fill them with `moe.init.initialize` or `moe.hf.load_checkpoint`.
    """

    def __init__(
        self,
        config: MoEConfig,
        parallel: ExpertParallel | None = None,
        balancing: Balancing | None = None,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self._activation_checkpointing = activation_checkpointing
        self.parallel = parallel or ExpertParallel()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(HybridLayer(config, self.parallel, balancing) for _ in range(config.num_layers))
        self.norm = RMSNorm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, batch: PackedBatch, caches: list[LayerCache] | None = None) -> tuple[Tensor, list[LayerBalance]]:
        """Hidden states before the output head.

        The head is left to the caller: a trainer applies it to trained positions only, since T x V logits are the
        largest tensor of a step.

        Args:
            batch: T tokens.
            caches: one a layer, for generation.

        Returns:
            [T, D], and one `LayerBalance` a layer.
        """
        x_TD = self.embed_tokens(batch.tokens_T)
        rotary = rotary_table(self.config, batch.documents.positions_T, x_TD.dtype)
        recompute = self._activation_checkpointing and torch.is_grad_enabled()
        balances = []
        for index, layer in enumerate(self.layers):
            arguments = (x_TD, batch, rotary, caches[index] if caches else None)
            if recompute:
                # Repeats the layer's collectives in the backward pass. All processes record the same operations, and so
                # go back in the same order, also through these. Nothing is random: there is no state to restore.
                x_TD, balance = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x_TD, balance = layer(*arguments)
            balances.append(balance)
        return self.norm(x_TD), balances
