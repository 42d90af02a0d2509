"""Two functions that autograd alone would make keep more than they need for the backward pass.

In bf16 and per token of D numbers, a norm that autograd takes apart keeps 6 D bytes beside its input (the input in
fp32, the normalised rows), and a gate 2 D beside its two inputs; these keep 4 bytes and none.

Shapes: T tokens, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm, computed in fp32 and cast before the weight, as Arctic's published code does."""
    out_TD: Tensor = _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[no-untyped-call]
    return out_TD


def gate(gate_TD: Tensor, up_TD: Tensor) -> Tensor:
    """`silu(gate) * up`, the middle of a SwiGLU."""
    out_TD: Tensor = _Gate.apply(gate_TD, up_TD)  # type: ignore[no-untyped-call]
    return out_TD


class _RMSNorm(torch.autograd.Function):
    """Keeps its input, which others keep too, and one number a token."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x32_TD = x_TD.float()
        scale_T1 = torch.rsqrt(x32_TD.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x_TD, weight_D, scale_T1)
        return weight_D * (x32_TD * scale_T1).to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (x_TD, weight_D, scale_T1), grad_TD = ctx.saved_tensors, gradients[0]
        normal_TD = x_TD.float() * scale_T1
        grad_weight_D = (grad_TD * normal_TD.to(x_TD.dtype)).sum(0) if ctx.needs_input_grad[1] else None
        grad_normal_TD = (grad_TD * weight_D).float()
        along_T1 = (grad_normal_TD * normal_TD).mean(-1, keepdim=True)
        grad_x_TD = scale_T1 * grad_normal_TD.addcmul_(normal_TD, along_T1, value=-1)
        return grad_x_TD.to(x_TD.dtype), grad_weight_D, None


class _Gate(torch.autograd.Function):
    """Keeps its inputs."""

    @staticmethod
    def forward(ctx: Any, gate_TD: Tensor, up_TD: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TD, up_TD)
        return F.silu(gate_TD) * up_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gate_TD, up_TD), grad_TD = ctx.saved_tensors, gradients[0]
        grad_gate_TD = torch.ops.aten.silu_backward(grad_TD * up_TD, gate_TD)
        return grad_gate_TD, grad_TD * F.silu(gate_TD)
