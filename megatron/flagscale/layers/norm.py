"""RMSNorm and LayerNorm on torch's kernels, with sequence parallelism as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class Norm(torch.nn.Module):
    """Normalize the last dimension of `[..., hidden_size]`; `config.normalization` is the kind of norm.

    With `config.layernorm_zero_centered_gamma` (`--apply-layernorm-1p`) the weight is stored as its
    difference from one, so that weight decay pulls it towards one.
    """

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
        weight = self.weight + 1 if self.zero_centered else self.weight
        if self.bias is None:
            return F.rms_norm(hidden, self.shape, weight, self.eps)
        return F.layer_norm(hidden, self.shape, weight, self.bias, self.eps)
