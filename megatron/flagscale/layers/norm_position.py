"""Norms of a layer's results: `--norm-position`, which the engine does not have (megatron-core 0.19.2).

A layer adds two results to its input: that of attention and that of the MLP. The engine normalizes what
attention and the MLP read (`pre`). OLMo-2 normalizes only their results, before they are added (`post`), and
Gemma-2 and Gemma-3 do both (`both`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from flagscale.checks.norms import POSITION, POST, PRE
from megatron.flagscale.layers.norm import Norm

Added = Callable[[tuple[torch.Tensor, torch.Tensor | None], torch.Tensor, float], torch.Tensor]
"""`((result, bias), layer input, dropout) -> sum`, as `get_bias_dropout_add` of the engine returns it."""


@dataclass
class NormedSubmodules(TransformerLayerSubmodules):
    """The parts of a layer whose results are normalized."""

    post_attention_norm: type[Norm] = Norm
    post_mlp_norm: type[Norm] = Norm


class NormedLayer(TransformerLayer):
    """The engine's layer, which also normalizes the results of attention and MLP before it adds them.

    The norms come after the bias of a result and before dropout. They have one weight for each of
    `hidden_size` elements, on every tensor parallel rank.
    """

    self_attn_bda: Any
    mlp_bda: Any

    def __init__(self, config: Any, submodules: NormedSubmodules, *given: Any, **named: Any) -> None:
        super().__init__(config, submodules, *given, **named)
        size, eps = config.hidden_size, config.layernorm_epsilon
        self.post_attention_norm = submodules.post_attention_norm(config, size, eps)
        self.post_mlp_norm = submodules.post_mlp_norm(config, size, eps)
        self.self_attn_bda = partial(_after, self.post_attention_norm, self.self_attn_bda)
        self.mlp_bda = partial(_after, self.post_mlp_norm, self.mlp_bda)


def _after(norm: Norm, add: Callable[[bool, bool], Added], training: bool, fused: bool) -> Added:
    def add_normed(
        result_and_bias: tuple[torch.Tensor, torch.Tensor | None], residual: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        result, bias = result_and_bias
        normed = norm(result if bias is None else result + bias)
        return add(training, fused)((normed, None), residual, dropout)

    return add_normed


def position_in(transformer: Any) -> str:
    """Return where the layers of a model have norms; without the argument, as in the engine."""
    position: str = getattr(transformer, POSITION, PRE)
    return position


def place_norms(layer: ModuleSpec, position: str) -> None:
    """Change the specification of a layer so that its norms are at `pre`, `post` or `both`."""
    if position == PRE:
        return
    parts = {field.name: getattr(layer.submodules, field.name) for field in fields(layer.submodules)}
    if position == POST:
        parts |= {"input_layernorm": IdentityOp, "pre_mlp_layernorm": IdentityOp}
    layer.module, layer.submodules = NormedLayer, NormedSubmodules(**parts)
