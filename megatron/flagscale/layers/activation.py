"""Activations of an MLP that keep one tensor for the backward pass: their input. The rest is computed again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


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
    function = functools.partial(_gated, config) if config.gated_linear_unit else config.activation_func
    return _Recomputed.apply(function, inputs, weights)


def _gated(config: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Compute what Megatron's MLP computes if nothing is fused (`MLP.forward`, megatron-core 0.19.2)."""
    gate, linear = inputs.chunk(2, -1)
    if (limit := config.activation_func_clamp_value) is not None:
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    if config.glu_linear_offset:
        linear = linear + config.glu_linear_offset
    product: torch.Tensor = config.activation_func(gate) * linear
    return product


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.function = function
        out = function(inputs)
        return out if weights is None else (out * weights.unsqueeze(-1)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weights = ctx.saved_tensors
        (grad,) = grads
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            out = ctx.function(leaf)
        of_weights = None
        if weights is not None:
            grad = grad.to(torch.promote_types(grad.dtype, weights.dtype))
            if ctx.needs_input_grad[2]:
                of_weights = (grad * out.detach()).sum(-1).to(weights.dtype)
            grad = (grad * weights.unsqueeze(-1)).to(inputs.dtype)
        return None, torch.autograd.grad(out, leaf, grad)[0], of_weights
