"""Activations of an MLP that are computed again in the backward pass: of all tensors, their input is kept.

The linear layer after an activation would keep the activation, its own input. So the product with its weights
is part of the function here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_swiglu import swiglu, swiglu_back
from megatron.core.tensor_parallel.layers import RowParallelLinear

type Tensors = tuple[torch.Tensor, ...]
type Gradient = Callable[[torch.Tensor], torch.Tensor]


class Product(Protocol):
    """Rows times weights, and its gradients."""

    def forward(self, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """Return the product."""

    def backward(
        self, grad: torch.Tensor, rows: torch.Tensor, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors]:
        """Return the gradients of the rows, and those of the weights."""


def computes(config: Any) -> bool:
    """Return whether an MLP with this configuration has its activation computed here.

    Others keep one tensor anyway (without a gate), or are compiled by Megatron.
    """
    if not config.gated_linear_unit or config.activation_func_fp8_input_store or config.cpu_offloading:
        return False
    return not config.bias_activation_fusion or config.activation_func is F.silu


def gelu_tanh(inputs: torch.Tensor) -> torch.Tensor:
    """Return GELU in its tanh approximation, `gelu_pytorch_tanh` in transformers."""
    return F.gelu(inputs, approximate="tanh")


def activated_product(
    config: Any, inputs: torch.Tensor, scales: torch.Tensor | None, product: Product, *weights: torch.Tensor
) -> torch.Tensor:
    """Return the product of the activation that `config` names, of `inputs [..., n or 2 n]`, and the weights.

    If `scales [...]` are given, each row of the activation is multiplied by its own. They may be more precise
    than the inputs, to whose precision the result is rounded.
    """
    return _ActivatedProduct.apply(config, inputs, scales, product, *weights)


class GatedActivation(torch.nn.Module):
    """The activation of a gated MLP, `[..., 2 n]` to `[..., n]`: SwiGLU, GEGLU, or as `config` says."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return activated_product(self.config, inputs, None, _Alone())


class Unchanged(torch.nn.Module):
    """The activation of an MLP whose second linear layer is an `ActivatedLinear`."""

    def __init__(self, config: Any) -> None:
        super().__init__()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


class ActivatedLinear(RowParallelLinear):
    """Megatron's linear layer, of the activation of its input."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **settings: Any) -> torch.Tensor:
        is_plain = weight.requires_grad and settings["gtp_remat_size"] == 1
        if is_plain and not settings["gradient_accumulation_fusion"]:
            return activated_product(self.config, input, None, Linear(), weight)
        rows = activated_product(self.config, input, None, _Alone())
        out: torch.Tensor = super()._forward_impl(input=rows, weight=weight, **settings)
        return out


class _Alone:
    """The rows themselves, without weights."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def backward(self, grad: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        return grad, ()


class Linear:
    """Rows `[..., k]` times a transposed weight `[m, k]`."""

    def forward(self, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return rows @ weights[0].t()

    def backward(
        self, grad: torch.Tensor, rows: torch.Tensor, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors]:
        return grad @ weights[0], (grad.flatten(0, -2).t() @ rows.flatten(0, -2),)


class _ActivatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        config: Any,
        inputs: torch.Tensor,
        scales: torch.Tensor | None,
        product: Product,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, scales, *weights)
        ctx.config, ctx.product = config, product
        return product.forward(_scaled(_activate(config, inputs), scales), *weights)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, scales, *weights = ctx.saved_tensors
        plain, gradient = _again(ctx.config, inputs)
        grad, of_weights = ctx.product.backward(grads[0], _scaled(plain, scales), *weights)
        of_scales = None
        if scales is not None:
            precise = grad.to(torch.promote_types(grad.dtype, scales.dtype))
            of_scales = (precise * plain).sum(-1).to(scales.dtype)
            grad = (precise * scales.unsqueeze(-1)).to(inputs.dtype)
        return None, gradient(grad), of_scales, None, *of_weights


def _scaled(rows: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return rows if scales is None else (rows * scales.unsqueeze(-1)).to(rows.dtype)


def _activate(config: Any, inputs: torch.Tensor) -> torch.Tensor:
    if not _is_swiglu(config):
        return _function(config)(inputs)
    if config.bias_activation_fusion:
        return swiglu(inputs)
    gate, linear = inputs.chunk(2, -1)
    return F.silu(gate).mul_(linear)


def _again(config: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, Gradient]:
    """Return the activation, and the function from its gradient to that of the inputs."""
    if not _is_swiglu(config):
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            rows = _function(config)(leaf)
        return rows.detach(), lambda grad: torch.autograd.grad(rows, leaf, grad)[0]
    if config.bias_activation_fusion:
        return swiglu(inputs), lambda grad: swiglu_back(grad, inputs)
    gate, linear = inputs.chunk(2, -1)
    silu = F.silu(gate)

    def gradient(grad: torch.Tensor) -> torch.Tensor:
        of_inputs = torch.empty_like(inputs)
        of_gate, of_linear = of_inputs.chunk(2, -1)
        torch.mul(grad, silu, out=of_linear)
        torch.ops.aten.silu_backward.grad_input(grad * linear, gate, grad_input=of_gate)
        return of_inputs

    return silu * linear, gradient


def _is_swiglu(config: Any) -> bool:
    plain = config.activation_func_clamp_value is None and not config.glu_linear_offset
    return config.gated_linear_unit and plain and config.activation_func is F.silu


def _function(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return functools.partial(_gated, config) if config.gated_linear_unit else config.activation_func


def _gated(config: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Compute what Megatron's MLP computes if nothing is fused (`MLP.forward`, megatron-core 0.19.2)."""
    gate, linear = inputs.chunk(2, -1)
    if (limit := config.activation_func_clamp_value) is not None:
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    product: torch.Tensor = config.activation_func(gate) * (linear + config.glu_linear_offset)
    return product
