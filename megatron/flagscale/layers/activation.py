"""Activations of an MLP that keep only their input for the backward pass, and compute the rest again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


class GatedActivation(torch.nn.Module):
    """The activation of a gated MLP, `[..., 2 n]` to `[..., n]`: SwiGLU, GEGLU, or as `config` says.

    Megatron adds the bias of the linear layer first.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return activate(self.config, inputs)


def activate(config: Any, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the activation that `config` names, shaped and as precise as `inputs`; if gated, half as wide.

    If `weights [...]` are given, each row is multiplied by its own; they may be more precise than the rows.
    """
    if not config.gated_linear_unit:
        return _Recomputed.apply(config.activation_func, inputs, weights)
    if _is_swiglu(config):
        return _SwiGLU.apply(inputs, weights)
    return _Recomputed.apply(functools.partial(_gated, config), inputs, weights)


def _is_swiglu(config: Any) -> bool:
    plain = config.activation_func_clamp_value is None and not config.glu_linear_offset
    return plain and config.activation_func is F.silu


def _gated(config: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Compute what Megatron's MLP computes if nothing is fused (`MLP.forward`, megatron-core 0.19.2)."""
    gate, linear = inputs.chunk(2, -1)
    if (limit := config.activation_func_clamp_value) is not None:
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    product: torch.Tensor = config.activation_func(gate) * (linear + config.glu_linear_offset)
    return product


class _SwiGLU(torch.autograd.Function):
    """As `_Recomputed`, with the gradient written directly into its two halves."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weights)
        gate, linear = inputs.chunk(2, -1)
        return _weighted(F.silu(gate).mul_(linear), weights)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weights = ctx.saved_tensors
        gate, linear = inputs.chunk(2, -1)
        silu = F.silu(gate)
        grad, of_weights = grads[0], None
        if weights is not None:
            grad, of_weights = _weighted_backward(grad, silu * linear, weights)
        of_inputs = torch.empty_like(inputs)
        of_gate, of_linear = of_inputs.chunk(2, -1)
        torch.mul(grad, silu, out=of_linear)
        torch.ops.aten.silu_backward.grad_input(torch.mul(grad, linear, out=silu), gate, grad_input=of_gate)
        return of_inputs, of_weights


class _Recomputed(torch.autograd.Function):
    """Any function of the input: it is called again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.function = function
        return _weighted(function(inputs), weights)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weights = ctx.saved_tensors
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            out = ctx.function(leaf)
        grad, of_weights = grads[0], None
        if weights is not None:
            grad, of_weights = _weighted_backward(grad, out.detach(), weights)
        return None, torch.autograd.grad(out, leaf, grad)[0], of_weights


def _weighted(rows: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return rows if weights is None else (rows * weights.unsqueeze(-1)).to(rows.dtype)


def _weighted_backward(
    grad: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the rows and of their weights."""
    grad = grad.to(torch.promote_types(grad.dtype, weights.dtype))
    return (grad * weights.unsqueeze(-1)).to(rows.dtype), (grad * rows).sum(-1).to(weights.dtype)
