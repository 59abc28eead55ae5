"""RMSNorm and LayerNorm that keep their input and one or two numbers per row for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron.flagscale.chips import chip
from megatron.flagscale.layers.storage import compact


class Norm(torch.nn.Module):
    """Normalize the last dimension of `[..., hidden_size]`; `config.normalization` is the kind of norm.

    The result has the precision of the weight, whatever that of the input (`--fp32-residual-connection`).

    With `config.layernorm_zero_centered_gamma` (`--apply-layernorm-1p`) the weight is stored as its
    difference from one, so that weight decay pulls it towards one.
    """

    group: dist.ProcessGroup | None = None
    """The ranks that hold parts of the last dimension, if it is split; only an RMSNorm can be."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.shape = (hidden_size,)
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        make = torch.zeros if self.zero_centered else torch.ones
        self.weight = torch.nn.Parameter(make(hidden_size, dtype=config.params_dtype))
        self.bias = None
        if config.normalization == "LayerNorm":
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        elif config.normalization != "RMSNorm":
            raise ValueError(f"unknown normalization `{config.normalization}`; use RMSNorm or LayerNorm")
        # With sequence parallelism, each rank has different tokens: the trainer sums these gradients.
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        (hidden,) = compact(hidden)
        weight = self.weight + 1 if self.zero_centered else self.weight
        if self.bias is not None:
            weight, bias = weight.to(hidden.dtype), self.bias.to(hidden.dtype)
            return F.layer_norm(hidden, self.shape, weight, bias, self.eps).to(self.bias.dtype)
        group = self.group if self.group and self.group.size() > 1 else None
        if chip().has_rms_norm and hidden.dtype == weight.dtype and not group:
            return F.rms_norm(hidden, self.shape, weight, self.eps)
        return _RMSNorm.apply(hidden, weight, self.eps, group)


class _RMSNorm(torch.autograd.Function):
    """Without a kernel of its own, torch's RMSNorm is composed of operations that keep copies in float.

    The ranks of a `group` hold equal parts of the last dimension.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> torch.Tensor:
        total = torch.promote_types(hidden.dtype, torch.float32)
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=total)
        scale = _mean(norm.square_(), hidden.size(-1), group).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        ctx.group = group
        # A product of two precisions would be slow on CPU.
        return (hidden.to(total) * scale).mul_(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, scale = ctx.saved_tensors
        grad, factor = grads[0].to(scale.dtype), weight.to(scale.dtype)
        normal = hidden.to(scale.dtype) * scale
        product = grad * normal
        share = _mean(product @ factor, hidden.size(-1), ctx.group).unsqueeze(-1)
        of_weight = product.flatten(0, -2).sum(0)
        of_hidden = torch.mul(grad, factor, out=product).sub_(normal.mul_(share)).mul_(scale)
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), None, None


def _mean(total: torch.Tensor, width: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Return the mean over `width` elements on each rank, from their sum, which is overwritten."""
    if group is None:
        return total.div_(width)
    dist.all_reduce(total, group=group)
    return total.div_(width * group.size())
